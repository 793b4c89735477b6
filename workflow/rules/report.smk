# update() keeps the last good page until the new one replaces it. A partial report removes `complete`, so that the next
# call builds the whole report.
rule report:
    input:
        ends_with_message(RULES.report_input),
    output:
        update(f"{REPORTS}/{{suite}}/index.html"),
        update(f"{REPORTS}/{{suite}}/summary.parquet"),
        complete=touch(f"{RESULTS}/report/{{suite}}.complete"),
    log:
        f"{RESULTS}/logs/report/{{suite}}.log",
    params:
        version=floral.__version__,
        runs=RULES.run_folders,
        outdated=RULES.outdated_runs,
        options=never_a_reason_to_rerun(RULES.report_options),
    shell:
        "floral --log {log:q} report {wildcards.suite:q} {params.options}"

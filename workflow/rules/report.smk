# update(): the last good page stays until the new one replaces it. `complete` is missing after a partial report, so
# that the next call makes a whole one.
rule report:
    input:
        runs_of,
    output:
        update(f"{REPORTS}/{{suite}}/index.html"),
        update(f"{REPORTS}/{{suite}}/summary.parquet"),
        complete=touch(f"{RESULTS}/report/{{suite}}.complete"),
    log:
        f"{RESULTS}/logs/report/{{suite}}.log",
    params:
        version=floral.__version__,
        runs=lambda wildcards: [str(run.folder) for run in SUITES[wildcards.suite]],
        reported=reported,
    shell:
        "floral --log {log} report {wildcards.suite} {params.reported}"

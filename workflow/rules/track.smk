# Views of the run folders in MLflow. The report does not wait for them.
#
# The database is created once, before any suite is tracked: two processes that open a missing database at once crash in
# its migration.
rule store:
    output:
        touch(f"{RESULTS}/track/store"),
    log:
        f"{RESULTS}/logs/track/store.log",
    params:
        uri=SETTINGS.shown_tracking_uri,
    shell:
        "floral --log {log:q} track --create-store"


rule track:
    input:
        ends_with_message(RULES.report_input),
        store=ancient(f"{RESULTS}/track/store"),
    output:
        f"{RESULTS}/track/{{suite}}.json",
    log:
        f"{RESULTS}/logs/track/{{suite}}.log",
    params:
        version=floral.__version__,
        runs=RULES.run_folders,
        uri=SETTINGS.shown_tracking_uri,
        options=never_a_reason_to_rerun(RULES.track_options),
    shell:
        "floral --log {log:q} track {wildcards.suite:q} {params.options}"


rule attach:
    input:
        page=f"{REPORTS}/{{suite}}/index.html",
        tracked=f"{RESULTS}/track/{{suite}}.json",
    output:
        touch(f"{RESULTS}/track/{{suite}}.attached"),
    log:
        f"{RESULTS}/logs/track/{{suite}}-attach.log",
    shell:
        "floral --log {log:q} track {wildcards.suite:q} --attach"

# Views of the run folders in MLflow; none of this holds up the report.
#
# Two processes that open a missing database at once crash in its migration: it is made before any suite is tracked.
rule store:
    output:
        touch(f"{RESULTS}/track/store"),
    log:
        f"{RESULTS}/logs/track/store.log",
    params:
        uri=SETTINGS.tracking_uri,
    shell:
        "floral --log {log} track --create-store"


rule track:
    input:
        runs_of,
        store=ancient(f"{RESULTS}/track/store"),
    output:
        f"{RESULTS}/track/{{suite}}.json",
    log:
        f"{RESULTS}/logs/track/{{suite}}.log",
    params:
        version=floral.__version__,
        runs=lambda wildcards: [str(run.folder) for run in SUITES[wildcards.suite]],
        uri=SETTINGS.tracking_uri,
        narrowing=narrowing,
    shell:
        "floral --log {log} track {wildcards.suite} {params.narrowing}"


rule attach:
    input:
        page=f"{REPORTS}/{{suite}}/index.html",
        tracked=f"{RESULTS}/track/{{suite}}.json",
    output:
        touch(f"{RESULTS}/track/{{suite}}.attached"),
    log:
        f"{RESULTS}/logs/track/{{suite}}-attach.log",
    shell:
        "floral --log {log} track {wildcards.suite} --attach"

# One job per task and variant; `done` is the only declared output, as in rule train: finished trials must survive.
rule tune:
    input:
        ancient(partitions_of_search),
    output:
        done=f"{RESULTS}/tune/{{task}}/{{variant}}/{{hash8}}/done",
    log:
        f"{RESULTS}/logs/tune/{{task}}/{{variant}}-{{hash8}}.log",
    threads: 1
    resources:
        **SEARCHING,
    params:
        job=tune_job,
        execution=execution,
    shell:
        "floral --log {log} tune {params.job} {params.execution}"


# The target that tunes: `snakemake --profile local tuned --config suite=NAME`. It has no output, for what it writes is
# committed: config/tuned/*.yaml is read before any job is planned, as every other value is.
rule tuned:
    input:
        searches_to_write,
    log:
        f"{RESULTS}/logs/tune/write.log",
    localrule: True
    params:
        job=write_job,
    shell:
        "floral --log {log} tune --write {params.job}"

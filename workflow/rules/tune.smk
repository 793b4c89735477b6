# One job per task and variant. `done` is the only declared output, as in rule train: finished trials must survive.
rule tune:
    input:
        ancient(ends_with_message(RULES.tune_input)),
    output:
        done=f"{RESULTS}/tune/{{task}}/{{variant}}/{{hash8}}/done",
    log:
        f"{RESULTS}/logs/tune/{{task}}/{{variant}}-{{hash8}}.log",
    threads: 1
    resources:
        **TUNE_RESOURCES,
    params:
        search=never_a_reason_to_rerun(RULES.tune_options),
        execution=never_a_reason_to_rerun(RULES.execution_options),
    shell:
        "floral --log {log:q} tune {params.search} {params.execution}"


# The target that tunes: `snakemake --profile local tuned --config suite=NAME`. It has no output in the results: it writes
# config/tuned/*.yaml, which is committed and read before any job is planned.
rule tuned:
    input:
        ends_with_message(RULES.tuned_input),
    log:
        f"{RESULTS}/logs/tune/write.log",
    localrule: True
    params:
        suites=RULES.tuned_options,
    shell:
        "floral --log {log:q} tune --write {params.suites}"

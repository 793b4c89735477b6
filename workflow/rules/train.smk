# `done` is the only declared output. Snakemake deletes declared outputs before it starts a job, and the other files of a
# run must survive: the run continues from its checkpoint.
rule train:
    input:
        ancient(ends_with_message(RULES.train_input)),
    output:
        done=f"{RESULTS}/train/{{task}}/{{variant}}/seed{{seed}}-{{hash8}}/done",
    log:
        f"{RESULTS}/train/{{task}}/{{variant}}/seed{{seed}}-{{hash8}}/log.txt",
    group:
        train_group
    threads: 1
    resources:
        **TRAIN_RESOURCES,
    params:
        run=never_a_reason_to_rerun(RULES.train_options),
        execution=never_a_reason_to_rerun(RULES.execution_options),
        checkpoint=never_a_reason_to_rerun(RULES.checkpoint_options),
    shell:
        "floral train {params.run} {params.execution} {params.checkpoint}"

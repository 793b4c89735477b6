# `done` is the only declared output, for Snakemake deletes those before it runs a job: the run itself must survive.
rule train:
    input:
        ancient(partition_of),
    output:
        done=f"{RESULTS}/train/{{task}}/{{variant}}/seed{{seed}}-{{hash8}}/done",
    log:
        f"{RESULTS}/train/{{task}}/{{variant}}/seed{{seed}}-{{hash8}}/log.txt",
    group:
        group_of
    threads: 1
    resources:
        **TRAINING,
    params:
        job=train_job,
        execution=execution,
        training=training,
    shell:
        "floral train {params.job} {params.execution} {params.training}"

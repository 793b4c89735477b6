rule partition:
    input:
        data_of,
    output:
        table=f"{RESULTS}/partition/{{task}}/seed{{seed}}-{{hash8}}/partition.parquet",
    log:
        f"{RESULTS}/logs/partition/{{task}}/seed{{seed}}-{{hash8}}.log",
    params:
        job=partition_job,
    shell:
        "floral --log {log} partition {params.job}"

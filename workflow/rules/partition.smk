rule partition:
    input:
        ends_with_message(RULES.partition_input),
    output:
        table=f"{RESULTS}/partition/{{task}}/seed{{seed}}-{{hash8}}/partition.parquet",
    log:
        f"{RESULTS}/logs/partition/{{task}}/seed{{seed}}-{{hash8}}.log",
    params:
        partition=never_a_reason_to_rerun(RULES.partition_options),
    shell:
        "floral --log {log:q} partition {params.partition}"

rule fetch:
    output:
        f"{RESULTS}/data/{{data}}/card.json",
    log:
        f"{RESULTS}/logs/fetch/{{data}}.log",
    params:
        job=fetch_job,
    shell:
        "floral --log {log} fetch {params.job}"

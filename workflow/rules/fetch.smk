rule fetch:
    output:
        f"{RESULTS}/data/{{data}}/card.json",
    log:
        f"{RESULTS}/logs/fetch/{{data}}.log",
    params:
        data=never_a_reason_to_rerun(RULES.fetch_options),
    shell:
        "floral --log {log:q} fetch {params.data}"

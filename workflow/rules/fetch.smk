rule fetch:
    output:
        f"{RESULTS}/data/{{data}}/card.json",
    log:
        f"{RESULTS}/logs/fetch/{{data}}.log",
    shell:
        "floral --log {log} fetch {wildcards.data}"

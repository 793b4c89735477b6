# The way of the data:  fetch → partition → (tune) → train → report
#                                                        └→ track
# One job per data set, partition, search (task × variant), run (task × variant × seed) and suite. What is asked for stands in
# config/config.yaml; `--config suite=NAME` changes it for one call. Each rule is one call of the command `floral`.

from snakemake.utils import min_version

from floral.config.paths import CONFIG_FOLDER

min_version("9.0")


configfile: str(CONFIG_FOLDER / "config.yaml")


include: "workflow/rules/common.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/partition.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/track.smk"


# On a cluster these run where Snakemake runs: they need the network or take seconds. Training never does.
localrules:
    all,
    fetch,
    partition,
    report,
    store,
    track,
    attach,


rule all:
    default_target: True
    input:
        tuned_values_first,
        [f"{RESULTS}/{folder}/done" for folder in RUNS],
        expand(f"{RESULTS}/report/{{suite}}.complete", suite=SUITES),
        expand(f"{REPORTS}/{{suite}}/index.html", suite=SUITES),
        expand(f"{REPORTS}/{{suite}}/summary.parquet", suite=SUITES),
        expand(f"{RESULTS}/track/{{suite}}.attached", suite=SUITES),

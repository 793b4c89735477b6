# The stages:  fetch → partition → (tune) → train → report
#                                              └→ track
# One job per data set, partition, search (task × variant), run (task × variant × seed) and suite. Each rule calls the
# command `floral` once. config/config.yaml names the suites; `--config suite=NAME` names another one for one call.
#
# Profiles are in workflow/profiles. The links `local`, `gpu` and `slurm` beside this file are there because Snakemake
# looks for `--profile local` in the working directory and in the user's configuration, and not in workflow/profiles.

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/partition.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/track.smk"


# On a cluster these rules run where Snakemake runs: they need the network or take seconds. Training never runs there.
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
        ends_with_message(RULES.all_input),
        [f"{RESULTS}/{folder}/done" for folder in WORK.runs],
        expand(f"{RESULTS}/report/{{suite}}.complete", suite=WORK.suites),
        expand(f"{REPORTS}/{{suite}}/index.html", suite=WORK.suites),
        expand(f"{REPORTS}/{{suite}}/summary.parquet", suite=WORK.suites),
        expand(f"{RESULTS}/track/{{suite}}.attached", suite=WORK.suites),

# The pipeline, in the order that data flows through it:
#
#   data         fetch → corpus
#   snapshots    pretrain → snapshot (each); or from a hub; or from folders
#   activations  extract (each snapshot) → stack → token_table → basis → project
#   crosscoder   train (each seed) → fidelity (each seed)
#   analyses     features (histories), phases, and what `analyses` names: one rule per stage
#   report       figures, atlas → summary
#
# Streamed activations leave out `project`. The map of the experiment (ontogeny/experiment.py) says
# where everything lies; docs/design.md says where to add what.
#
# snakemake --cores 2                                       the default experiment, config.yaml
# snakemake --cores 2 --configfile experiments/NAME.yaml    another; both live under results/

import os

from snakemake.utils import min_version

min_version("9.0")

DEFAULT = "config.yaml"
if not os.path.exists(DEFAULT):  # in another working folder
    DEFAULT = os.path.join(workflow.basedir, DEFAULT)

if not config:  # --configfile replaces the default experiment, it is not merged into it

    configfile: DEFAULT


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/snapshots.smk"
include: "rules/activations.smk"
include: "rules/crosscoder.smk"
include: "rules/report.smk"
include: "rules/analyses.smk"
include: "rules/replicates.smk"


onstart:
    if workflow.is_main_process:
        if workflow.local_exec:
            # Cores limit the jobs of this machine. Snakemake's limit of jobs a second has it weigh all
            # waiting jobs again once a second for each job that has ended, a fifth of a core.
            workflow.scheduler.job_rate_limiter = None
        interrupts.end_with_jobs(
            workflow.local_exec
        )  # Snakemake has just put in its own handler
        for experiment in at_work():
            introduce(experiment)
            advise(experiment)  # which compares with what the last run has left
            claim(experiment)
            refuse_what_does_not_fit(experiment)


onsuccess:
    if workflow.is_main_process:
        for experiment in at_work():
            keep_manifest(experiment)
            show_what_to_open(experiment)


# What the experiment costs, before it runs: `snakemake --cores 1 plan`.
rule plan:
    log:
        log("plan"),
    localrule: True
    conda:
        "envs/ontogeny.yaml"
    params:
        config=at("config"),
    message:
        "The bill"
    shell:
        "ontogeny plan {params.config} 2>&1 | tee {log}"


# The same experiment with other models, whole: `snakemake --cores 2 replicates`.
for replicate, settings in REPLICATES.items():
    prefix = f"{replicate}_"

    module:
        name: replicate
        snakefile:
            "Snakefile"
        config:
            settings.model_dump(mode="json", exclude_unset=True)

    use rule * from replicate exclude fetch as prefix*


# Through a cluster's profile, also in a dry run, jobs are announced with what they ask for, which
# messages would hide.
if workflow.resource_settings.default_resources:
    for each in workflow.rules:
        each.message = None


rule all:
    default_target: True
    input:
        figures(E.figures()),
        ATLASES,
        at("summary"),
    localrule: True

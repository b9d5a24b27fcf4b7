# The pipeline, in the order that data flows through it:
#
#   data         fetch → corpus
#   snapshots    pretrain → snapshot (each); or a hub's revisions; or folders
#   activations  extract (each snapshot) → stack → token_table → basis → project
#   crosscoder   train (each seed) → fidelity (each seed)
#   analyses     features (histories), phases, and what `analyses` names: one rule per stage
#   report       figures, atlas → summary
#
# Streamed activations leave out `project`. The map of the experiment (ontogeny/experiment.py) says
# where every file is; docs/design.md says how to extend it.
#
# snakemake --cores 2                                       the default experiment, config.yaml
# snakemake --cores 2 --configfile experiments/NAME.yaml    another; both live under results/

import os

from snakemake.utils import min_version

min_version("9.0")

DEFAULT = "config.yaml"
if not os.path.exists(DEFAULT):  # run from another folder
    DEFAULT = os.path.join(workflow.basedir, DEFAULT)

if not config:  # --configfile replaces the default experiment instead of being merged into it

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
            # Cores limit the jobs on this machine. Because of its limit of jobs per second, Snakemake
            # would reconsider all waiting jobs once a second for each job that has ended, which takes
            # a fifth of a core.
            workflow.scheduler.job_rate_limiter = None
        interrupts.end_with_jobs(
            workflow.local_exec
        )  # after Snakemake has installed its own handler
        for experiment in at_work():
            introduce(experiment)
            advise(experiment)  # before claim: it compares with the files of the last run
            claim(experiment)
            list_wanted(experiment)
            refuse_what_does_not_fit(experiment)


onsuccess:
    if workflow.is_main_process:
        for experiment in at_work():
            keep_manifest(experiment)
            show_what_to_open(experiment)


# The cost of the experiment, before it runs: `snakemake --cores 1 plan`.
rule plan:
    log:
        log("plan"),
    localrule: True
    conda:
        "envs/ontogeny.yaml"
    params:
        config=at("config"),
    message:
        "The plan"
    shell:
        "ontogeny plan {params.config} 2>&1 | tee {log}"


# The whole experiment with other models: `snakemake --cores 2 replicates`.
for replicate, settings in REPLICATES.items():
    prefix = f"{replicate}_"

    module:
        name: replicate
        snakefile:
            "Snakefile"
        config:
            settings.model_dump(mode="json", exclude_unset=True)

    use rule * from replicate exclude fetch as prefix*


# With a cluster's profile, also in a dry run, Snakemake shows the resources of each job; messages
# would hide them.
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

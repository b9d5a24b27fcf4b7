# The pipeline, in the order that data flows through it:
#
#   fetch → corpus → pretrain → snapshot (each) → extract (each) → stack → basis → project
#        → train (each seed) → fidelity (each seed) → features → figures;
#   snapshots → phases → figures;   → atlas → summary
#
# and what `analyses` names, each from the first crosscoder, the snapshots and the text:
#
#   kinds, contexts, complexity, presence, induction (heads), circuits; frontier trains its own
#
# Snapshots that are not trained here come from rules/hub.smk or rules/local.smk instead, with their
# tokenizer; streamed activations leave out `project`.
#
# snakemake --cores 2                                       the default experiment, config.yaml
# snakemake --cores 2 --configfile experiments/NAME.yaml    another; both live under results/

from snakemake.utils import min_version

min_version("9.0")

if not config:  # --configfile replaces the default experiment, it is not merged into it

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/corpus.smk"
include: f"rules/{S.snapshots.source}.smk"
include: "rules/activations.smk"
include: "rules/crosscoder.smk"
include: "rules/frontier.smk"
include: "rules/features.smk"
include: "rules/contexts.smk"
include: "rules/presence.smk"
include: "rules/complexity.smk"
include: "rules/phases.smk"
include: "rules/circuits.smk"
include: "rules/figures.smk"
include: "rules/atlas.smk"
include: "rules/replicates.smk"
include: "rules/induction.smk"


onstart:
    if workflow.is_main_process:
        for experiment in at_work():
            claim(experiment)
            refuse_what_does_not_fit(experiment)


# What the experiment costs, before it runs: `snakemake --cores 1 plan`.
rule plan:
    log:
        f"{RESULTS}/logs/plan.log",
    localrule: True
    conda:
        "envs/ontogeny.yaml"
    params:
        config=CONFIG,
    message:
        "The bill"
    shell:
        "ontogeny plan {params.config} 2>&1 | tee {log}"


# Each analysis alone, in the default run or not: `snakemake --cores 2 kinds`.
for analysis, names in FIGURES_OF.items():

    rule:
        name:
            analysis
        input:
            figures(names),
        localrule: True


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
        figures(),
        ATLASES,
        f"{RESULTS}/summary.json",
    localrule: True

# One rule for each declared stage (ontogeny/stages.py and the analyses' declarations): histories,
# phases, and everything that an analysis measures. To see them all: snakemake --list-rules


def stage_inputs(stage):
    """What a stage reads, by argument."""
    return lambda w: running.inputs(E, stage, w.get("crosscoder"))


for stage in registry.stages().values():
    if not running.exists(E, stage):
        continue
    of = "/{crosscoder}" if stage.scope == "crosscoder" else ""

    rule:
        name:
            stage.rule
        input:
            unpack(stage_inputs(stage)),
        output:
            **running.outputs(E, stage),
        log:
            log(f"{stage.name}{of}"),
        benchmark:
            benchmark_of(f"{stage.name}{of}")
        localrule: stage.local
        conda:
            CONDA
        resources:
            **needs(stage.name),
        params:
            **lineage.parameters(E, stage),
            experiment=RESULTS,
            command=stage.name,
            of=lambda w: w.get("crosscoder", ""),
        message:
            f"{stage.about.rstrip('.')}{of.replace('/', ': ').replace('{', '{wildcards.')}"
        shell:
            "ontogeny {params.command} {params.experiment} {params.of} --threads {threads}"
            " 2>&1 | tee {log}"


# Each analysis alone, in the default run or not: `snakemake --cores 2 kinds`.
for analysis in registry.all_analyses().values():

    rule:
        name:
            analysis.name
        input:
            figures([figure.name for figure in analysis.figures]),
        localrule: True

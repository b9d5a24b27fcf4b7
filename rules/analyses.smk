# One rule for each declared stage (ontogeny/stages.py and the analyses' declarations): histories,
# phases, and everything that an analysis measures. To see them all: snakemake --list-rules

for stage in registry.stages().values():
    if not running.exists(E, stage):
        continue

    rule:
        name:
            stage.rule
        input:
            unpack(inputs(stage)),
        output:
            **running.outputs(E, stage),
        log:
            log(named(stage)),
        benchmark:
            benchmark_of(named(stage))
        priority: FIRST["core"] if stage.core else 0
        localrule: stage.local
        conda:
            CONDA
        resources:
            **needs(stage.name),
        params:
            **lineage.parameters(E, stage),
            experiment=experiment,
            reads=reads(inputs(stage)),
            command=stage.name,
            of=lambda w: w.get("crosscoder", ""),
        message:
            stage.about.rstrip(".")
        shell:
            "ontogeny {params.command} {params.experiment} {params.of} --threads {threads}"
            " 2>&1 | tee {log}"


# Each analysis as a target, whether or not it is in the default run: `snakemake --cores 2 kinds`.
for analysis in registry.all_analyses().values():

    rule:
        name:
            analysis.name
        input:
            figures([figure.name for figure in analysis.figures]),
        localrule: True

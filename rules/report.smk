# Figures, the atlas, the summary. Every figure is a PDF, a PNG and a CSV of the numbers drawn, and
# has a separate rule, so that a change to one redraws only that one.

from ontogeny.atlas import reads as atlas_reads

for declared in registry.figures().values():

    rule:
        name:
            f"figure_{declared.name}"
        input:
            unpack(inputs(declared)),
        output:
            drawn(declared),
        log:
            log(f"figures/{declared.name}"),
        benchmark:
            benchmark_of(f"figures/{declared.name}")
        localrule: True
        conda:
            CONDA
        params:
            **lineage.parameters(E, declared),
            experiment=experiment,
            reads=reads(inputs(declared)),
            name=declared.name,
        message:
            f"Figure: {declared.label}"
        shell:
            "ontogeny figure {params.name} {params.experiment} 2>&1 | tee {log}"


if ATLASES:

    rule atlas:
        input:
            **strings(atlas_reads.files(E)),
        output:
            directory(at("atlas")),
        log:
            log("atlas"),
        benchmark:
            benchmark_of("atlas")
        conda:
            CONDA
        resources:
            **needs("atlas"),
        params:
            settings=[MODEL, STEPS, atlas_reads.parameters(E)],
            code=code("ontogeny.atlas.build"),
            experiment=experiment,
            reads=reads(atlas_reads.files(E)),
        message:
            "The atlas"
        shell:
            "ontogeny atlas {params.experiment} --threads {threads} 2>&1 | tee {log}"

else:

    rule atlas:
        input:
            no_atlas,
        localrule: True


rule numbers:
    input:
        measured(),
    output:
        at("numbers"),
    log:
        log("numbers"),
    localrule: True
    conda:
        CONDA
    params:
        code=code("ontogeny.summary"),
        numbers=[code(hook.partition(":")[0]) for hook in running.number_hooks(E)],
        experiment=experiment,
        reads=reads(measured()),
    message:
        "Collecting the numbers"
    shell:
        "ontogeny summary {params.experiment} --numbers 2>&1 | tee {log}"


# It runs last, since it includes seconds and bytes of figures and atlas. All measured files must
# exist.
rule summary:
    input:
        figures(E.figures()),
        ATLASES,
        measured(),
        numbers=at("numbers"),
    output:
        at("summary", "provenance"),
    log:
        log("summary"),
    localrule: True
    conda:
        CONDA
    params:
        settings=digest_value(S.model_dump(mode="json")),
        code=code("ontogeny.summary"),
        experiment=experiment,
    message:
        "Adding up the cost"
    shell:
        "ontogeny summary {params.experiment} 2>&1 | tee {log}"

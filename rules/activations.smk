# Activations of every snapshot, and their principal subspace.
#
# Training rows lie in shards, one unless activations.budget asks for more: those of the first are
# extracted with the held-out rows, later ones once the shard before the last is projected, so that
# two are on disk at a time. Streamed training rows are never on disk.


def extracted(step, shard):
    """Files of a snapshot's training rows of a shard."""
    return strings(E.rows_of(step, shard, E.sites))


def projected_before(wildcards):
    """What has to be projected before a later shard is extracted: the last shard but one."""
    before = int(wildcards.shard) - 2
    bases = E.bases(S.crosscoders_to_train)
    return [ancient(str(E.projected(sites)[before])) for sites in bases if before >= 0]


def basis_rows(shard):
    """The training rows of a basis, or what they are streamed from."""
    return lambda w: strings(E.training_rows(BASES[w.sites], shard(w)))


def basis_stacks(wildcards):
    """The stacks that a basis is made of."""
    return strings(E.stacks(BASES[wildcards.sites]))


rule extract:
    input:
        snapshot=at("snapshot"),
        tokens=at("tokens"),
    output:
        [str(E.path("held_out", site=site, step="{step}")) for site in E.sites],
        rows=kept(extracted("{step}", 0)),
    log:
        log("extract/{step}"),
    benchmark:
        benchmark_of("extract/{step}")
    conda:
        CONDA
    resources:
        **needs("extract"),
    params:
        model=MODEL,
        activations=ROWS,
        code=code("ontogeny.activations.extract"),
        experiment=RESULTS,
    message:
        "Activations of step {wildcards.step}"
    shell:
        "ontogeny extract {params.experiment} {wildcards.step} --threads {threads} 2>&1 | tee {log}"


if len(SHARDS) > 1:

    rule extract_shard:
        input:
            projected_before,
            snapshot=at("snapshot"),
            tokens=at("tokens"),
        output:
            temp(extracted("{step}", "{shard}")),
        log:
            log("extract/{step}.{shard}"),
        benchmark:
            benchmark_of("extract/{step}.{shard}")
        wildcard_constraints:
            shard=r"[1-9]\d*",
        conda:
            CONDA
        resources:
            **needs("extract_shard"),
        params:
            model=MODEL,
            activations=ROWS,
            code=code("ontogeny.activations.extract"),
            experiment=RESULTS,
        message:
            "Activations of step {wildcards.step}, shard {wildcards.shard}"
        shell:
            "ontogeny extract {params.experiment} {wildcards.step} --shard {wildcards.shard}"
            " --threads {threads} 2>&1 | tee {log}"


rule stack:
    input:
        files=lambda w: [str(E.path("held_out", site=w.site, step=step)) for step in STEPS],
        rows=lambda w: [p for step in STEPS for p in strings(E.rows_of(step, 0, [w.site]))],
    output:
        at("stack"),
    log:
        log("stack/{site}"),
    localrule: True
    conda:
        CONDA
    params:
        steps=STEPS,
        code=code("ontogeny.activations.store"),
        experiment=RESULTS,
    message:
        "Stacking the snapshots of {wildcards.site}"
    shell:
        "ontogeny stack {params.experiment} {wildcards.site} 2>&1 | tee {log}"


rule basis:
    input:
        stacks=basis_stacks,
        rows=basis_rows(lambda w: 0),
    output:
        at("basis"),
    log:
        log("basis/{sites}"),
    benchmark:
        benchmark_of("basis/{sites}")
    conda:
        CONDA
    threads: 2
    resources:
        **needs("basis"),
    params:
        basis=values(S.basis),
        activations=ROWS,
        code=code("ontogeny.activations.basis"),
        experiment=RESULTS,
    message:
        "Principal subspace of {wildcards.sites}"
    shell:
        "ontogeny basis {params.experiment} {wildcards.sites} --threads {threads} 2>&1 | tee {log}"


rule project:
    input:
        stacks=basis_stacks,
        rows=basis_rows(lambda w: w.shard),
        basis=at("basis"),
    output:
        at("projected"),
    log:
        log("project/{sites}.{shard}"),
    benchmark:
        benchmark_of("project/{sites}.{shard}")
    conda:
        CONDA
    threads: 2
    resources:
        **needs("project"),
    params:
        code=code("ontogeny.activations.subspace"),
        experiment=RESULTS,
    message:
        "Projecting shard {wildcards.shard} of {wildcards.sites}"
    shell:
        "ontogeny project {params.experiment} {wildcards.sites} {wildcards.shard}"
        " --threads {threads} 2>&1 | tee {log}"

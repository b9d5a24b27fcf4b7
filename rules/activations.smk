# Activations of every snapshot, and their principal subspace.
#
# Training rows are in shards, of which there is one unless activations.budget requires more. Those
# of the first shard are extracted with the held-out rows; a later one is extracted when the last
# shard but one has been projected, so that two are on disk at a time. Streamed rows are never on
# disk.


if S.activations.leave_out_norm is not None:

    # Find positions that have no row at any snapshot. Each snapshot runs over the text once more
    # for this.
    rule norms:
        input:
            snapshot=at("snapshot"),
            tokens=at("tokens"),
        output:
            at("norms_of"),
        log:
            log("norms/{step}"),
        benchmark:
            benchmark_of("norms/{step}")
        priority: FIRST["rows"]
        conda:
            CONDA
        resources:
            **needs("extract"),
        params:
            model=MODEL,
            activations=ROWS,
            code=code("ontogeny.activations.norms"),
            experiment=experiment,
        message:
            "Norms of step {wildcards.step}"
        shell:
            "ontogeny extract {params.experiment} {wildcards.step} --norms --threads {threads} 2>&1"
            " | tee {log}"


rule extract:
    input:
        strings(E.norms),
        snapshot=at("snapshot"),
        tokens=at("tokens"),
    output:
        [str(E.path("held_out", site=site, step="{step}")) for site in E.sites],
        at("held_out_loss"),
        rows=kept(extracted("{step}", 0)),
    log:
        log("extract/{step}"),
    benchmark:
        benchmark_of("extract/{step}")
    priority: FIRST["rows"]
    conda:
        CONDA
    resources:
        **needs("extract"),
    params:
        model=MODEL,
        activations=ROWS,
        code=code("ontogeny.activations.extract"),
        experiment=experiment,
    message:
        "Activations of step {wildcards.step}"
    shell:
        "ontogeny extract {params.experiment} {wildcards.step} --threads {threads} 2>&1 | tee {log}"


if len(SHARDS) > 1:

    rule extract_shard:
        input:
            projected_before,
            strings(E.norms),
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
            experiment=experiment,
        message:
            "Activations of step {wildcards.step}, shard {wildcards.shard}"
        shell:
            "ontogeny extract {params.experiment} {wildcards.step} --shard {wildcards.shard}"
            " --threads {threads} 2>&1 | tee {log}"


rule stack:
    input:
        stacked,
    output:
        at("stack"),
    log:
        log("stack/{site}"),
    localrule: True
    conda:
        CONDA
    params:
        steps=STEPS,
        scale=S.activations.scale,
        code=code("ontogeny.activations.store"),
        experiment=experiment,
        reads=reads(stacked),
    message:
        "Stacking the snapshots of {wildcards.site}"
    shell:
        "ontogeny stack {params.experiment} {wildcards.site} 2>&1 | tee {log}"


rule token_table:
    input:
        table_sources,
    output:
        at("token_table"),
    log:
        log("token_table/{site}"),
    benchmark:
        benchmark_of("token_table/{site}")
    priority: FIRST["token_table"]
    conda:
        CONDA
    resources:
        **needs("token_table"),
    params:
        activations=ROWS,
        code=code("ontogeny.activations.token_table"),
        experiment=experiment,
        reads=reads(table_sources),
    message:
        "Token table of {wildcards.site}"
    shell:
        "ontogeny token_table {params.experiment} {wildcards.site} --threads {threads} 2>&1"
        " | tee {log}"


rule basis:
    input:
        unpack(basis_tables),
        stacks=basis_stacks,
        rows=basis_rows,
    output:
        at("basis"),
    log:
        log("basis/{sites}"),
    benchmark:
        benchmark_of("basis/{sites}")
    priority: FIRST["rows"]
    conda:
        CONDA
    threads: lambda w: basis_threads(w.sites)
    resources:
        **needs("basis"),
    params:
        basis=values(S.basis, *NO_BASIS),
        activations=ROWS,
        code=code("ontogeny.activations.basis"),
        experiment=experiment,
        reads=reads(basis_tables, basis_stacks, basis_rows),
    message:
        "Principal subspace of {wildcards.sites}"
    shell:
        "ontogeny basis {params.experiment} {wildcards.sites} --threads {threads} 2>&1 | tee {log}"


rule project:
    input:
        unpack(basis_tables),
        stacks=basis_stacks,
        rows=basis_rows,
        basis=at("basis"),
    output:
        at("projected"),
    log:
        log("project/{sites}.{shard}"),
    benchmark:
        benchmark_of("project/{sites}.{shard}")
    priority: FIRST["rows"]
    conda:
        CONDA
    threads: 2
    resources:
        **needs("project"),
    params:
        code=code("ontogeny.activations.subspace"),
        experiment=experiment,
        reads=reads(basis_tables, basis_stacks, basis_rows),
    message:
        "Projecting shard {wildcards.shard} of {wildcards.sites}"
    shell:
        "ontogeny project {params.experiment} {wildcards.sites} {wildcards.shard}"
        " --threads {threads} 2>&1 | tee {log}"

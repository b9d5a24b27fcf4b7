# Training rows lie in shards, one unless activations.budget asks for more: those of the first are
# extracted with the held-out rows, later ones once the shard before the last is projected, so that
# two are on disk at a time. Streamed training rows are never on disk.


rule extract:
    input:
        snapshot=SNAPSHOT,
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        expand(f"{ACTIVATIONS}/{{place}}/step{{{{step}}}}.h5", place=PLACES),
        rows=kept(rows_of("{step}", 0)),
    log:
        f"{RESULTS}/logs/extract/{{step}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/extract/{{step}}.tsv"
    conda:
        CONDA
    resources:
        **needs("extract"),
    params:
        model=MODEL,
        activations=ROWS,
        code=code("activations.extract"),
        folder=lambda w, output: Path(output[0]).parent.parent,
        config=CONFIG,
    message:
        "Activations of step {wildcards.step}"
    shell:
        "ontogeny extract --config {params.config} --threads {threads} --step {wildcards.step}"
        " --snapshot {input.snapshot} --tokens {input.tokens} --output {params.folder}"
        " 2>&1 | tee {log}"


if len(SHARDS) > 1:

    rule extract_shard:
        input:
            projected_before,
            snapshot=SNAPSHOT,
            tokens=f"{RESULTS}/corpus/tokens.h5",
        output:
            temp(rows_of("{step}", "{shard}")),
        log:
            f"{RESULTS}/logs/extract/{{step}}.{{shard}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/extract/{{step}}.{{shard}}.tsv"
        wildcard_constraints:
            shard=r"[1-9]\d*",
        conda:
            CONDA
        resources:
            **needs("extract_shard"),
        params:
            model=MODEL,
            activations=ROWS,
            code=code("activations.extract"),
            folder=lambda w, output: Path(output[0]).parent.parent,
            config=CONFIG,
        message:
            "Activations of step {wildcards.step}, shard {wildcards.shard}"
        shell:
            "ontogeny extract --config {params.config} --threads {threads} --step {wildcards.step}"
            " --shard {wildcards.shard} --snapshot {input.snapshot} --tokens {input.tokens}"
            " --output {params.folder} 2>&1 | tee {log}"


rule stack:
    input:
        files=expand(f"{ACTIVATIONS}/{{{{place}}}}/step{{step}}.h5", step=STEPS),
        rows=lambda w: [path for step in STEPS for path in rows_of(step, 0, [w.place])],
    output:
        f"{ACTIVATIONS}/{{place}}/stack.h5",
    log:
        f"{RESULTS}/logs/stack/{{place}}.log",
    localrule: True
    conda:
        CONDA
    params:
        steps=STEPS,
        code=code("activations.store"),
        config=CONFIG,
    message:
        "Stacking the snapshots of {wildcards.place}"
    shell:
        "ontogeny stack --config {params.config} --output {output} {input.files} 2>&1 | tee {log}"

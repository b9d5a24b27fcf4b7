# What features look like: the contexts that they are active in, and their logit lens.


rule gather_contexts:
    input:
        weights=lambda w: each_seed("crosscoder.safetensors")(w)[0],
        stacks=lambda w: stacks(S.crosscoders[w.crosscoder]),
        snapshots=snapshot_files(),
        tokens=f"{RESULTS}/corpus/tokens.h5",
        tokenizer=f"{RESULTS}/corpus/tokenizer.json",
    output:
        store=f"{RESULTS}/features/{{crosscoder}}/contexts.h5",
        table=f"{RESULTS}/features/{{crosscoder}}/contexts.parquet",
    log:
        f"{RESULTS}/logs/contexts/{{crosscoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/contexts/{{crosscoder}}.tsv"
    conda:
        CONDA
    resources:
        **needs("gather_contexts"),
    params:
        contexts=values(S.contexts),
        seed=S.analysis.seed,
        code=code("features.contexts"),
        folder=lambda w, input: Path(input.weights).parent,
        activations=ACTIVATIONS,
        snapshots=lambda w, input: Path(input.snapshots[0]).parent,
        config=CONFIG,
    message:
        "Contexts of the features of {wildcards.crosscoder}"
    shell:
        "ontogeny contexts --config {params.config} --threads {threads}"
        " --crosscoder {params.folder} --activations {params.activations}"
        " --snapshots {params.snapshots} --tokens {input.tokens} --tokenizer {input.tokenizer}"
        " --output {output.store} --table {output.table} 2>&1 | tee {log}"


rule figure_examples:
    input:
        features=f"{TABLES}/features.parquet",
        strengths=f"{TABLES}/strengths.parquet",
        contexts=f"{TABLES}/contexts.parquet",
        kinds=f"{TABLES}/kinds.parquet" if "kinds" in S.analyses else [],
    output:
        drawn("examples", "Features through training", "Examples, with contexts"),
    log:
        f"{RESULTS}/logs/figures/examples.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/examples.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.examples"),
        kinds=lambda w, input: f"--kinds {input.kinds}" if input.kinds else "",
        stem=stem,
    message:
        "Figure: examples of features, with contexts"
    shell:
        "ontogeny figure examples"
        " --features {input.features}"
        " --strengths {input.strengths}"
        " --contexts {input.contexts} {params.kinds}"
        " --output {params.stem} 2>&1 | tee {log}"

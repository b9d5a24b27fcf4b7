# Does the norm mean presence? A table for each crosscoder with histories, and one figure of all.

COMPARED = [name for name in S.crosscoders if has_features(name)]


rule measure_presence:
    input:
        weights=lambda w: each_seed("crosscoder.safetensors")(w)[0],
        stacks=lambda w: stacks(S.crosscoders[w.crosscoder]),
        tokens=f"{RESULTS}/corpus/tokens.h5",
        features=f"{RESULTS}/features/{{crosscoder}}/features.parquet",
    output:
        tests=f"{RESULTS}/features/{{crosscoder}}/presence.parquet",
        verdicts=f"{RESULTS}/features/{{crosscoder}}/presence.csv",
    log:
        f"{RESULTS}/logs/presence/{{crosscoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/presence/{{crosscoder}}.tsv"
    conda:
        CONDA
    resources:
        **needs("measure_presence"),
    params:
        presence_tests=values(S.presence_tests),
        analysis=[S.analysis.seed, S.analysis.bootstrap],
        code=code("features.presence"),
        folder=lambda w, input: Path(input.weights).parent,
        activations=ACTIVATIONS,
        config=CONFIG,
    message:
        "Whether the norms of {wildcards.crosscoder} mean presence"
    shell:
        "ontogeny presence --config {params.config} --threads {threads}"
        " --crosscoder {params.folder} --activations {params.activations}"
        " --tokens {input.tokens} --features {input.features}"
        " --output {output.tests} --verdicts {output.verdicts} 2>&1 | tee {log}"


rule figure_presence:
    input:
        features=expand(f"{RESULTS}/features/{{name}}/features.parquet", name=COMPARED),
        tests=expand(f"{RESULTS}/features/{{name}}/presence.parquet", name=COMPARED),
        verdicts=expand(f"{RESULTS}/features/{{name}}/presence.csv", name=COMPARED),
    output:
        drawn("presence", "Features through training", "Does the norm mean presence?"),
    log:
        f"{RESULTS}/logs/figures/presence.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/presence.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.presence"),
        names=of_compared("crosscoder", COMPARED),
        features=lambda w, input: of_compared("features", input.features),
        tests=lambda w, input: of_compared("tests", input.tests),
        verdicts=lambda w, input: of_compared("verdicts", input.verdicts),
        stem=stem,
    message:
        "Figure: does the norm mean presence?"
    shell:
        "ontogeny figure presence {params.names} {params.features} {params.tests}"
        " {params.verdicts} --output {params.stem} 2>&1 | tee {log}"

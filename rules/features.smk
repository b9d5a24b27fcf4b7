rule features:
    input:
        weights=each_seed("crosscoder.safetensors"),
        densities=each_seed("density.parquet"),
    output:
        multiext(
            f"{RESULTS}/features/{{crosscoder}}/",
            "features.parquet",
            "strengths.parquet",
            "directions.csv",
            "classes.csv",
            "matches.csv",
            "turning_point.json",
        ),
    log:
        f"{RESULTS}/logs/features/{{crosscoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/features/{{crosscoder}}.tsv"
    conda:
        CONDA
    resources:
        **needs("features"),
    params:
        analysis=values(S.analysis, "spliced_blocks", "copying_blocks", "phase_blocks", *OF_KINDS),
        code=code("features.evolution"),
        crosscoders=lambda w, input: [f"--crosscoder {Path(p).parent}" for p in input.weights],
        densities=lambda w, input: [f"--density {p}" for p in input.densities],
        folder=lambda w, output: Path(output[0]).parent,
        config=CONFIG,
    message:
        "Histories of the features of {wildcards.crosscoder}"
    shell:
        "ontogeny features --config {params.config} --threads {threads}"
        " {params.crosscoders} {params.densities} --output {params.folder} 2>&1 | tee {log}"


rule measure_dimensionality:
    input:
        weights=each_seed("crosscoder.safetensors"),
        densities=each_seed("density.parquet"),
        features=f"{RESULTS}/features/{{crosscoder}}/features.parquet",
    output:
        f"{RESULTS}/features/{{crosscoder}}/dimensionality.csv",
    log:
        f"{RESULTS}/logs/dimensionality/{{crosscoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/dimensionality/{{crosscoder}}.tsv"
    conda:
        CONDA
    resources:
        **needs("measure_dimensionality"),
    params:
        presence=S.analysis.presence,
        code=code("features.dimensionality"),
        crosscoders=lambda w, input: [f"--crosscoder {Path(p).parent}" for p in input.weights],
        densities=lambda w, input: [f"--density {p}" for p in input.densities],
        config=CONFIG,
    message:
        "Dimensionality of the features of {wildcards.crosscoder}"
    shell:
        "ontogeny dimensionality --config {params.config} --threads {threads}"
        " {params.crosscoders} {params.densities} --features {input.features}"
        " --output {output} 2>&1 | tee {log}"


rule judge_kinds:
    input:
        weights=lambda w: each_seed("crosscoder.safetensors")(w)[0],
        stacks=lambda w: stacks(S.crosscoders[w.crosscoder]),
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        kinds=f"{RESULTS}/features/{{crosscoder}}/kinds.parquet",
        control=f"{RESULTS}/features/{{crosscoder}}/kinds_control.csv",
    log:
        f"{RESULTS}/logs/kinds/{{crosscoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/kinds/{{crosscoder}}.tsv"
    conda:
        CONDA
    resources:
        **needs("judge_kinds"),
    params:
        analysis=[S.analysis.seed, *(getattr(S.analysis, key) for key in OF_KINDS)],
        code=code("features.kinds"),
        folder=lambda w, input: Path(input.weights).parent,
        activations=ACTIVATIONS,
        config=CONFIG,
    message:
        "Kinds of the features of {wildcards.crosscoder}"
    shell:
        "ontogeny kinds --config {params.config} --threads {threads}"
        " --crosscoder {params.folder} --activations {params.activations}"
        " --tokens {input.tokens} --output {output.kinds} --control {output.control}"
        " 2>&1 | tee {log}"

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
    params:
        analysis=values(S.analysis, "spliced_blocks", "copying_blocks"),
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

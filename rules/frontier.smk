# The fidelity frontier: `snakemake --cores 2 frontier` trains its dictionaries with the rules of
# crosscoder.smk and draws them. Nothing else asks for them.

FRONTIER = [
    f"{RESULTS}/crosscoders/{name}/seed{seed}"
    for name, c in DICTIONARIES.items()
    if name not in S.crosscoders
    for seed in c.seeds
]


rule measure_frontier:
    input:
        sites=[f"{folder}/fidelity.csv" for folder in FRONTIER],
        features=[f"{folder}/density.parquet" for folder in FRONTIER],
    output:
        table=f"{RESULTS}/frontier/frontier.csv",
        comparison=f"{RESULTS}/frontier/comparison.csv",
    log:
        f"{RESULTS}/logs/frontier.log",
    benchmark:
        f"{RESULTS}/benchmarks/frontier.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("crosscoder.frontier"),
        crosscoders=lambda w, input: Path(input.sites[0]).parents[2],
        config=CONFIG,
    message:
        "Fidelity frontier"
    shell:
        "ontogeny frontier --config {params.config} --crosscoders {params.crosscoders}"
        " --table {output.table} --comparison {output.comparison} 2>&1 | tee {log}"


rule figure_frontier:
    input:
        f"{RESULTS}/frontier/frontier.csv",
    output:
        drawn(
            "frontier",
            "How well the dictionary describes the model",
            "Fidelity frontier",
        ),
    log:
        f"{RESULTS}/logs/figures/frontier.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/frontier.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.frontier"),
        stem=stem,
    message:
        "Figure: fidelity frontier"
    shell:
        "ontogeny figure frontier --table {input} --output {params.stem} 2>&1 | tee {log}"

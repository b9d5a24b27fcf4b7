# The experiment beside its replicates, whose rules the Snakefile takes from itself.


rule compare:
    input:
        [f"results/{s.name}/summary.json" for s in (S, *REPLICATES.values())],
    output:
        multiext(f"{RESULTS}/replicates/", "numbers.csv", "curves.csv", "matches.parquet"),
    log:
        f"{RESULTS}/logs/compare.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare.tsv"
    conda:
        CONDA
    resources:
        **needs("compare"),
    params:
        replicates=S.replicates,
        analysis=[S.analysis.matched_cosine, S.analysis.bootstrap, S.analysis.seed],
        code=code("replicates"),
        folder=lambda w, output: Path(output[0]).parent,
        config=CONFIG,
    message:
        "Comparing the models"
    shell:
        "ontogeny compare --config {params.config} --threads {threads} --folder results"
        " --output {params.folder} 2>&1 | tee {log}"


rule figure_replicates:
    input:
        curves=f"{RESULTS}/replicates/curves.csv",
        matches=f"{RESULTS}/replicates/matches.parquet",
        numbers=f"{RESULTS}/replicates/numbers.csv",
        levels=f"{RESULTS}/phases/levels.json",
    output:
        drawn("replicates", "The model and its training", "Other models"),
    log:
        f"{RESULTS}/logs/figures/replicates.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/replicates.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.replicates"),
        stem=stem,
        config=CONFIG,
    message:
        "Figure: replicates"
    shell:
        "ontogeny figure replicates --config {params.config} --curves {input.curves}"
        " --matches {input.matches} --numbers {input.numbers} --levels {input.levels}"
        " --output {params.stem} 2>&1 | tee {log}"


rule replicates:
    input:
        figures(["replicates"]) if REPLICATES else [],
    localrule: True

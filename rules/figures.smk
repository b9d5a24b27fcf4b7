# One rule a figure, so that a change to one redraws that one. Every figure is PDF, PNG and a CSV
# with the numbers drawn.


rule figure_training:
    input:
        **training_log(),
        phases=f"{RESULTS}/phases/phases.csv",
        levels=f"{RESULTS}/phases/levels.json",
    output:
        drawn("training", "The model and its training", "Training overview"),
    log:
        f"{RESULTS}/logs/figures/training.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/training.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.training"),
        log=lambda w, input: f"--log {input.log}" if "log" in input.keys() else "",
        stem=stem,
    message:
        "Figure: training overview"
    shell:
        "ontogeny figure training {params.log}"
        " --phases {input.phases}"
        " --levels {input.levels}"
        " --output {params.stem} 2>&1 | tee {log}"


rule figure_divergence:
    input:
        phases=f"{RESULTS}/phases/phases.csv",
        levels=f"{RESULTS}/phases/levels.json",
    output:
        drawn("divergence", "The model and its training", "Divergence from the n-gram models"),
    log:
        f"{RESULTS}/logs/figures/divergence.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/divergence.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.divergence"),
        stem=stem,
    message:
        "Figure: divergence from the n-gram models"
    shell:
        "ontogeny figure divergence"
        " --phases {input.phases}"
        " --levels {input.levels}"
        " --output {params.stem} 2>&1 | tee {log}"


rule figure_fidelity:
    input:
        tables=[f"{folder}/fidelity.csv" for folder in SEEDS],
        random=RANDOM,
    output:
        drawn(
            "fidelity",
            "How well the dictionary describes the model",
            "Explained variance, L0, loss recovered",
        ),
    log:
        f"{RESULTS}/logs/figures/fidelity.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/fidelity.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.fidelity"),
        stem=stem,
        tables=[
            f"--fidelity {folder}/fidelity.csv --seed {seed}"
            for folder, seed in zip(SEEDS, PRIMARY.seeds)
        ],
        random=[f"--random {table}" for table in RANDOM],
    message:
        "Figure: explained variance, L0, loss recovered"
    shell:
        "ontogeny figure fidelity {params.tables} {params.random}"
        " --output {params.stem} 2>&1 | tee {log}"


rule figure_stability:
    input:
        matches=f"{TABLES}/matches.csv",
        strengths=f"{TABLES}/strengths.parquet",
    output:
        drawn("stability", "How well the dictionary describes the model", "Stability across seeds"),
    log:
        f"{RESULTS}/logs/figures/stability.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/stability.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.stability"),
        stem=stem,
        matched_cosine=S.analysis.matched_cosine,
        config=CONFIG,
    message:
        "Figure: stability across seeds"
    shell:
        "ontogeny figure stability --config {params.config}"
        " --matches {input.matches}"
        " --strengths {input.strengths}"
        " --output {params.stem} 2>&1 | tee {log}"


rule figure_histories:
    input:
        features=f"{TABLES}/features.parquet",
        strengths=f"{TABLES}/strengths.parquet",
    output:
        drawn("histories", "Features through training", "Decoder-norm histories"),
    log:
        f"{RESULTS}/logs/figures/histories.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/histories.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.histories"),
        stem=stem,
    message:
        "Figure: decoder-norm histories"
    shell:
        "ontogeny figure histories"
        " --features {input.features}"
        " --strengths {input.strengths}"
        " --output {params.stem} 2>&1 | tee {log}"


rule figure_peaks:
    input:
        features=f"{TABLES}/features.parquet",
        strengths=f"{TABLES}/strengths.parquet",
    output:
        drawn("peaks", "Features through training", "Peak snapshot index"),
    log:
        f"{RESULTS}/logs/figures/peaks.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/peaks.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.peaks"),
        stem=stem,
    message:
        "Figure: peak snapshot index"
    shell:
        "ontogeny figure peaks"
        " --features {input.features}"
        " --strengths {input.strengths}"
        " --output {params.stem} 2>&1 | tee {log}"


rule figure_lifetimes:
    input:
        features=f"{TABLES}/features.parquet",
        classes=f"{TABLES}/classes.csv",
    output:
        drawn("lifetimes", "Features through training", "Lifetimes and onsets"),
    log:
        f"{RESULTS}/logs/figures/lifetimes.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/lifetimes.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.lifetimes"),
        stem=stem,
    message:
        "Figure: lifetimes and onsets"
    shell:
        "ontogeny figure lifetimes"
        " --features {input.features}"
        " --classes {input.classes}"
        " --output {params.stem} 2>&1 | tee {log}"


rule figure_directions:
    input:
        features=f"{TABLES}/features.parquet",
        directions=f"{TABLES}/directions.csv",
        turning_point=f"{TABLES}/turning_point.json",
    output:
        drawn("directions", "Features through training", "Directions and the turning point"),
    log:
        f"{RESULTS}/logs/figures/directions.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/directions.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.directions"),
        stem=stem,
    message:
        "Figure: directions and the turning point"
    shell:
        "ontogeny figure directions"
        " --features {input.features}"
        " --directions {input.directions}"
        " --turning-point {input.turning_point}"
        " --output {params.stem} 2>&1 | tee {log}"


rule figure_dimensionality:
    input:
        features=f"{TABLES}/features.parquet",
        dimensionality=f"{TABLES}/dimensionality.csv",
    output:
        drawn("dimensionality", "Features through training", "Dimensionality"),
    log:
        f"{RESULTS}/logs/figures/dimensionality.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/dimensionality.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.dimensionality"),
        stem=stem,
    message:
        "Figure: dimensionality"
    shell:
        "ontogeny figure dimensionality"
        " --features {input.features}"
        " --dimensionality {input.dimensionality}"
        " --output {params.stem} 2>&1 | tee {log}"


rule figure_kinds:
    input:
        features=f"{TABLES}/features.parquet",
        strengths=f"{TABLES}/strengths.parquet",
        kinds=f"{TABLES}/kinds.parquet",
        control=f"{TABLES}/kinds_control.csv",
    output:
        drawn("kinds", "Features through training", "Kinds of feature"),
    log:
        f"{RESULTS}/logs/figures/kinds.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/kinds.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.kinds"),
        stem=stem,
    message:
        "Figure: kinds of feature"
    shell:
        "ontogeny figure kinds"
        " --features {input.features}"
        " --strengths {input.strengths}"
        " --kinds {input.kinds}"
        " --control {input.control}"
        " --output {params.stem} 2>&1 | tee {log}"


rule summary:
    input:
        training_log().values(),
        f"{RESULTS}/phases/levels.json",
        expand(
            f"{RESULTS}/features/{{crosscoder}}/features.parquet",
            crosscoder=[n for n, c in S.crosscoders.items() if has_features(n)],
        ),
        [
            f"{RESULTS}/crosscoders/{name}/seed{seed}/fidelity.csv"
            for name, c in S.crosscoders.items()
            for seed in c.seeds
        ],
        figures(),
        ATLASES,  # whose seconds and bytes are among the numbers
    output:
        f"{RESULTS}/summary.json",
        f"{RESULTS}/provenance.json",
    log:
        f"{RESULTS}/logs/summary.log",
    localrule: True
    conda:
        CONDA
    params:
        settings=digest_value(S.model_dump(mode="json")),
        code=code("summary"),
        folder=lambda w, output: Path(output[0]).parent,
        source=SOURCE,
        config=CONFIG,
    message:
        "Gathering the numbers"
    shell:
        "ontogeny summary --config {params.config} --folder {params.folder}"
        " --source {params.source} 2>&1 | tee {log}"

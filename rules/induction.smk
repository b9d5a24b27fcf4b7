# Attention heads and copying are measured once a model; their order among the features' kinds is
# reckoned from that, so that other features, margins or bootstraps run no model again.

BY_KIND = (
    {
        "features": f"{TABLES}/features.parquet",
        "kinds": f"{TABLES}/kinds.parquet",
    }
    if "kinds" in S.analyses and has_features(S.primary)
    else {}
)


rule measure_heads:
    input:
        snapshots=snapshot_files(),
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        sums=f"{RESULTS}/phases/heads.h5",
        table=f"{RESULTS}/phases/heads.csv",
    log:
        f"{RESULTS}/logs/heads.log",
    benchmark:
        f"{RESULTS}/benchmarks/heads.tsv"
    conda:
        CONDA
    resources:
        **needs("measure_heads"),
    params:
        model=MODEL,
        steps=STEPS,
        blocks=S.heads.blocks,
        seed=S.analysis.seed,
        precision=S.activations.precision,
        code=code("phases.heads"),
        snapshots=lambda w, input: Path(input.snapshots[0]).parent,
        config=CONFIG,
    message:
        "What the attention heads of every snapshot attend to"
    shell:
        "ontogeny heads --config {params.config} --threads {threads}"
        " --snapshots {params.snapshots} --tokens {input.tokens}"
        " --sums {output.sums} --table {output.table} 2>&1 | tee {log}"


rule order_onsets:
    input:
        **BY_KIND,
        sums=f"{RESULTS}/phases/heads.h5",
    output:
        table=f"{RESULTS}/phases/induction.csv",
        curves=f"{RESULTS}/phases/induction_curves.csv",
    log:
        f"{RESULTS}/logs/induction.log",
    benchmark:
        f"{RESULTS}/benchmarks/induction.tsv"
    conda:
        CONDA
    resources:
        **needs("order_onsets"),
    params:
        margins=[S.heads.least_attention, S.heads.least_gain],
        bootstrap=[S.analysis.bootstrap, S.analysis.seed],
        code=code("phases.induction"),
        by_kind=[f"--{name} {path}" for name, path in BY_KIND.items()],
        config=CONFIG,
    message:
        "The order in which heads, copying and kinds of feature appear"
    shell:
        "ontogeny induction --config {params.config} --sums {input.sums} {params.by_kind}"
        " --table {output.table} --curves {output.curves} 2>&1 | tee {log}"


rule figure_induction:
    input:
        **(BY_KIND and BY_KIND | {"strengths": f"{TABLES}/strengths.parquet"}),
        table=f"{RESULTS}/phases/induction.csv",
        curves=f"{RESULTS}/phases/induction_curves.csv",
    output:
        drawn("induction", "The model and its training", "Heads, copying and features"),
    log:
        f"{RESULTS}/logs/figures/induction.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/induction.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.induction"),
        stem=stem,
        by_kind=lambda w, input: [
            f"--{name} {input[name]}"
            for name in ("features", "strengths", "kinds")
            if name in input.keys()
        ],
    message:
        "Figure: heads, copying and features"
    shell:
        "ontogeny figure induction --table {input.table} --curves {input.curves}"
        " {params.by_kind} --output {params.stem} 2>&1 | tee {log}"

def figures():
    return []


rule summary:
    message:
        "Gathering the numbers"
    input:
        f"{RESULTS}/pretrain/log.csv",
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
    output:
        f"{RESULTS}/summary.json",
        f"{RESULTS}/provenance.json",
    params:
        settings=digest_value(S.model_dump(mode="json")),
        code=code("summary"),
        folder=RESULTS,
        source=SOURCE,
        config=CONFIG,
    log:
        f"{RESULTS}/logs/summary.log",
    conda:
        CONDA
    shell:
        "ontogeny summary --config {params.config} --folder {params.folder}"
        " --source {params.source} 2>&1 | tee {log}"

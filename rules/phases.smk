rule phases:
    input:
        snapshots=snapshot_files(),
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        table=f"{RESULTS}/phases/phases.csv",
        levels=f"{RESULTS}/phases/levels.json",
    log:
        f"{RESULTS}/logs/phases.log",
    benchmark:
        f"{RESULTS}/benchmarks/phases.tsv"
    conda:
        CONDA
    resources:
        **needs("phases"),
    params:
        model=MODEL,
        steps=STEPS,
        code=code("phases.levels"),
        snapshots=lambda w, input: Path(input.snapshots[0]).parent,
        config=CONFIG,
    message:
        "Holding the snapshots' losses against the n-gram levels"
    shell:
        "ontogeny phases --config {params.config} --threads {threads}"
        " --snapshots {params.snapshots} --tokens {input.tokens}"
        " --table {output.table} --levels {output.levels} 2>&1 | tee {log}"

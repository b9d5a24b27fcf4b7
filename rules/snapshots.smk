# Training states are kept in an archive that the digest MODEL names. When a snapshot is added to
# the list, the archive grows by it, from the nearest earlier state, and nothing else changes.


rule pretrain:
    message:
        f"Training the language model: {S.pretrain.steps} steps"
    input:
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        log=f"{RESULTS}/pretrain/log.csv",
    params:
        model=MODEL,
        snapshots=STEPS,
        archive=ARCHIVE,
        config=CONFIG,
    log:
        f"{RESULTS}/logs/pretrain.log",
    benchmark:
        f"{RESULTS}/benchmarks/pretrain.tsv"
    conda:
        CONDA
    threads: 2
    shell:
        "ontogeny pretrain --config {params.config} --threads {threads} --tokens {input.tokens}"
        " --archive {params.archive} --log {output.log} 2>&1 | tee {log}"


rule snapshot:
    message:
        "Snapshot of step {wildcards.step}"
    input:
        ancient(f"{RESULTS}/pretrain/log.csv"),
    output:
        weights=f"{RESULTS}/snapshots/step{{step}}/model.safetensors",
        about=f"{RESULTS}/snapshots/step{{step}}/config.json",
    params:
        model=MODEL,
        archive=ARCHIVE,
        folder=lambda w, output: Path(output.weights).parent,
    log:
        f"{RESULTS}/logs/snapshot/{{step}}.log",
    conda:
        CONDA
    shell:
        "ontogeny snapshot --archive {params.archive} --step {wildcards.step}"
        " --output {params.folder} 2>&1 | tee {log}"

# Training states are kept in an archive that the digest MODEL names. Which of them are wanted is no
# parameter of the training, so a longer list trains nothing anew: the snapshot that the archive
# lacks is reached from the nearest earlier state, and nothing else changes.


rule pretrain:
    input:
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        touch(TRAINED_MARK),
    log:
        f"{RESULTS}/logs/pretrain.log",
    benchmark:
        f"{RESULTS}/benchmarks/pretrain.tsv"
    conda:
        CONDA
    threads: S.snapshots.pretrain.threads
    resources:
        **needs("pretrain"),
    params:
        model=MODEL,
        archive=ARCHIVE,
        config=CONFIG,
    message:
        f"Training the language model: {S.snapshots.pretrain.steps} steps"
    shell:
        "ontogeny pretrain --config {params.config} --threads {threads} --tokens {input.tokens}"
        " --archive {params.archive} 2>&1 | tee {log}"


rule training_log:
    input:
        trained=TRAINED_MARK,
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        log=f"{RESULTS}/pretrain/log.csv",
    log:
        f"{RESULTS}/logs/training_log.log",
    conda:
        CONDA
    threads: S.snapshots.pretrain.threads
    resources:
        **needs("training_log"),
    params:
        model=MODEL,
        snapshots=STEPS,
        archive=ARCHIVE,
        config=CONFIG,
    message:
        "Log of the language model's training"
    shell:
        "ontogeny pretrain --config {params.config} --threads {threads} --tokens {input.tokens}"
        " --archive {params.archive} --log {output.log} 2>&1 | tee {log}"


# A copy out of the archive, and light, unless the list of steps has grown since it was made.
rule snapshot:
    input:
        trained=TRAINED_MARK,
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        directory(SNAPSHOT),
    log:
        f"{RESULTS}/logs/snapshot/{{step}}.log",
    localrule: not UNTRAINED
    conda:
        CONDA
    threads: S.snapshots.pretrain.threads
    resources:
        **needs("pretrain"),
    params:
        model=MODEL,
        archive=ARCHIVE,
        config=CONFIG,
    message:
        "Snapshot of step {wildcards.step}"
    shell:
        "(test -d {params.archive}/step{wildcards.step} || ontogeny pretrain"
        " --config {params.config} --threads {threads} --tokens {input.tokens}"
        " --archive {params.archive};"
        " ontogeny snapshot --config {params.config} --archive {params.archive}"
        " --step {wildcards.step} --output {output}) 2>&1 | tee {log}"

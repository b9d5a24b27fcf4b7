# Training states are kept in an archive that the digest MODEL names. When a snapshot is added to
# the list, the archive grows by it, from the nearest earlier state, and nothing else changes: the
# snapshots' files are `ancient` inputs. What must follow when the model itself or the list changes
# follows a mark, a file named after the digest (Snakemake does not look for other reasons to run
# behind an `ancient` input whose maker runs).


rule mark:
    output:
        f"{RESULTS}/pretrain/{{what}}-{{digest}}.mark",
    log:
        f"{RESULTS}/logs/mark/{{what}}-{{digest}}.log",
    conda:
        CONDA
    params:
        others=lambda w, output: output[0].replace(w.digest, "*"),
    message:
        "Another {wildcards.what} than before"
    shell:
        "(rm -f {params.others} && echo {wildcards.digest} > {output}) 2>&1 | tee {log}"


rule pretrain:
    input:
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        log=f"{RESULTS}/pretrain/log.csv",
    log:
        f"{RESULTS}/logs/pretrain.log",
    benchmark:
        f"{RESULTS}/benchmarks/pretrain.tsv"
    conda:
        CONDA
    threads: 2
    params:
        model=MODEL,
        snapshots=STEPS,
        archive=ARCHIVE,
        config=CONFIG,
    message:
        f"Training the language model: {S.pretrain.steps} steps"
    shell:
        "ontogeny pretrain --config {params.config} --threads {threads} --tokens {input.tokens}"
        " --archive {params.archive} --log {output.log} 2>&1 | tee {log}"


rule snapshot:
    input:
        log=ancient(f"{RESULTS}/pretrain/log.csv"),
        model=MODEL_MARK,
    output:
        weights=f"{RESULTS}/snapshots/step{{step}}/model.safetensors",
        about=f"{RESULTS}/snapshots/step{{step}}/config.json",
    log:
        f"{RESULTS}/logs/snapshot/{{step}}.log",
    conda:
        CONDA
    params:
        model=MODEL,
        archive=ARCHIVE,
        folder=lambda w, output: Path(output.weights).parent,
    message:
        "Snapshot of step {wildcards.step}"
    shell:
        "ontogeny snapshot --archive {params.archive} --step {wildcards.step}"
        " --output {params.folder} 2>&1 | tee {log}"

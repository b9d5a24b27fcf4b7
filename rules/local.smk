# Snapshots that are folders of one's own, such as the checkpoints of a Trainer. Weights are linked,
# not copied, where the file system allows; a checkpoint that changes is taken anew.


rule tokenizer:
    input:
        tokenizer_sources(),
    output:
        directory(TOKENIZER),
    log:
        f"{RESULTS}/logs/tokenizer.log",
    localrule: True
    conda:
        CONDA
    params:
        model=MODEL,
        tokenizer=S.snapshots.local.tokenizer,
        config=CONFIG,
    message:
        "Copying the model's tokenizer"
    shell:
        "ontogeny tokenizer --config {params.config} --output {output} 2>&1 | tee {log}"


rule snapshot:
    input:
        lambda w: snapshot_sources(int(w.step)),
    output:
        directory(SNAPSHOT),
    log:
        f"{RESULTS}/logs/snapshot/{{step}}.log",
    conda:
        CONDA
    params:
        model=MODEL,
        config=CONFIG,
    message:
        "Snapshot of step {wildcards.step}"
    shell:
        "ontogeny place --config {params.config} --step {wildcards.step}"
        " --output {output} 2>&1 | tee {log}"

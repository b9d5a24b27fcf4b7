# Snapshots that are folders of one's own, such as the checkpoints of a Trainer. Weights are linked,
# not copied, where the file system allows; a checkpoint that changes is taken anew. Of the tokenizer
# the content decides, not the folder: a later checkpoint brings the same one, and the text stays as
# it is.

from ontogeny.files import digest_file


rule tokenizer:
    output:
        directory(TOKENIZER),
    log:
        f"{RESULTS}/logs/tokenizer.log",
    localrule: True
    conda:
        CONDA
    params:
        model=MODEL,
        files={
            Path(path).name: digest_file(path)
            for path in tokenizer_sources()
            if Path(path).name != "config.json"
        },
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
    resources:
        **needs("snapshot"),
    params:
        model=MODEL,
        config=CONFIG,
    message:
        "Snapshot of step {wildcards.step}"
    shell:
        "ontogeny snapshot --config {params.config} --step {wildcards.step}"
        " --output {output} 2>&1 | tee {log}"

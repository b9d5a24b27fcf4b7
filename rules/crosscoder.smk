# Training of the dictionaries, one job for each seed, and what they are worth on held-out text.


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
    threads: lambda w: DICTIONARIES[w.crosscoder].threads * DICTIONARIES[w.crosscoder].devices
    resources:
        **needs("train"),
        nodes=1,
    params:
        crosscoder=lambda w: values(DICTIONARIES[w.crosscoder], *NO_RESULT),
        code=code("ontogeny.crosscoder.train"),
        experiment=experiment,
        reads=reads(lambda w: E.training_sources(w.crosscoder)),
    message:
        "Training the crosscoder {wildcards.crosscoder}, seed {wildcards.seed}"
    shell:
        "ontogeny train {params.experiment} {wildcards.crosscoder} --seed {wildcards.seed}"
        " --threads {threads} 2>&1 | tee {log}"


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

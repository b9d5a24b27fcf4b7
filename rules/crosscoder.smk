rule basis:
    input:
        stacks=lambda w: stacks(DICTIONARIES[basis_owner(w)]),
        rows=lambda w: training_rows(DICTIONARIES[basis_owner(w)], 0),
    output:
        f"{RESULTS}/basis/{{sites}}.h5",
    log:
        f"{RESULTS}/logs/basis/{{sites}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/basis/{{sites}}.tsv"
    conda:
        CONDA
    threads: 2
    resources:
        **needs("basis"),
    params:
        basis=values(S.basis),
        activations=ROWS,
        code=code("activations.basis"),
        owner=basis_owner,
        places=places,
        config=CONFIG,
    message:
        "Principal subspace of {wildcards.sites}"
    shell:
        "ontogeny basis --config {params.config} --threads {threads} --crosscoder {params.owner}"
        " {params.places} --output {output} 2>&1 | tee {log}"


rule project:
    input:
        stacks=lambda w: stacks(DICTIONARIES[basis_owner(w)]),
        rows=lambda w: training_rows(DICTIONARIES[basis_owner(w)], w.shard),
        basis=f"{RESULTS}/basis/{{sites}}.h5",
    output:
        f"{RESULTS}/basis/{{sites}}.rows{{shard}}.h5",
    log:
        f"{RESULTS}/logs/project/{{sites}}.{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/project/{{sites}}.{{shard}}.tsv"
    conda:
        CONDA
    threads: 2
    resources:
        **needs("project"),
    params:
        code=code("activations.subspace"),
        owner=basis_owner,
        activations=ACTIVATIONS,
        config=CONFIG,
    message:
        "Projecting shard {wildcards.shard} of {wildcards.sites}"
    shell:
        "ontogeny project --config {params.config} --threads {threads} --crosscoder {params.owner}"
        " --shard {wildcards.shard} --activations {params.activations} --basis {input.basis}"
        " --output {output} 2>&1 | tee {log}"


rule train:
    input:
        unpack(training_inputs),
    output:
        weights=f"{TRAINED}/crosscoder.safetensors",
        about=f"{TRAINED}/config.json",
        metrics=f"{TRAINED}/metrics.csv",
    log:
        f"{RESULTS}/logs/train/{{crosscoder}}-{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train/{{crosscoder}}-{{seed}}.tsv"
    conda:
        CONDA
    threads: lambda w: DICTIONARIES[w.crosscoder].threads * DICTIONARIES[w.crosscoder].devices
    resources:
        **needs("train"),
        nodes=1,
    params:
        crosscoder=lambda w: values(DICTIONARIES[w.crosscoder], *NO_RESULT),
        code=code("crosscoder.train"),
        places=places,
        folder=lambda w, output: Path(output.weights).parent,
        state=training_state,
        config=CONFIG,
    message:
        "Training the crosscoder {wildcards.crosscoder}, seed {wildcards.seed}"
    shell:
        "ontogeny train --config {params.config} --threads {threads}"
        " --crosscoder {wildcards.crosscoder} --seed {wildcards.seed} {params.places}"
        " --output {params.folder} --state {params.state} 2>&1 | tee {log}"
        " && rm -rf {params.state}"


rule fidelity:
    input:
        unpack(fidelity_inputs),
        weights=f"{TRAINED}/crosscoder.safetensors",
    output:
        sites=f"{TRAINED}/fidelity.csv",
        features=f"{TRAINED}/density.parquet",
    log:
        f"{RESULTS}/logs/fidelity/{{crosscoder}}-{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fidelity/{{crosscoder}}-{{seed}}.tsv"
    conda:
        CONDA
    resources:
        **needs("fidelity"),
    params:
        spliced_blocks=S.analysis.spliced_blocks,
        floor=S.analysis.direction_floor,
        code=code("crosscoder.fidelity"),
        folder=lambda w, input: Path(input.weights).parent,
        places=places,
        config=CONFIG,
    message:
        "Fidelity of {wildcards.crosscoder}, seed {wildcards.seed}"
    shell:
        "ontogeny fidelity --config {params.config} --threads {threads}"
        " --crosscoder {params.folder} {params.places}"
        " --sites {output.sites} --features {output.features} 2>&1 | tee {log}"

def basis_owner(wildcards):
    """The first crosscoder that is trained in this basis; its inputs are those of all."""
    return next(
        name
        for name, c in S.crosscoders.items()
        if c.basis == "principal" and basis_name(c.inputs) == wildcards.sites
    )


rule basis:
    message:
        "Principal subspace of {wildcards.sites}"
    input:
        lambda w: stacks(S.crosscoders[basis_owner(w)]),
    output:
        f"{RESULTS}/basis/{{sites}}.h5",
    params:
        basis=values(S.basis),
        code=code("basis.principal"),
        owner=basis_owner,
        activations=f"{RESULTS}/activations",
        config=CONFIG,
    log:
        f"{RESULTS}/logs/basis/{{sites}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/basis/{{sites}}.tsv"
    conda:
        CONDA
    threads: 2
    shell:
        "ontogeny basis --config {params.config} --threads {threads} --crosscoder {params.owner}"
        " --activations {params.activations} --output {output} 2>&1 | tee {log}"


def training_inputs(wildcards):
    """The projected rows, and the stacks that the scales and the full rows come from."""
    c = S.crosscoders[wildcards.crosscoder]
    found = {"stacks": stacks(c)}
    if c.basis == "principal":
        found["basis"] = f"{RESULTS}/basis/{basis_name(c.inputs)}.h5"
    return found


def training_state(wildcards):
    """Where an unfinished training keeps its state: a place of its own for other settings."""
    c = S.crosscoders[wildcards.crosscoder]
    key = digest_value([MODEL, values(S.activations), values(c), code("crosscoder.train")])
    return f"{RESULTS}/state/{wildcards.crosscoder}-{wildcards.seed}-{key}"


TRAINED = f"{RESULTS}/crosscoders/{{crosscoder}}/seed{{seed}}"


rule train:
    message:
        "Training the crosscoder {wildcards.crosscoder}, seed {wildcards.seed}"
    input:
        unpack(training_inputs),
    output:
        weights=f"{TRAINED}/crosscoder.safetensors",
        about=f"{TRAINED}/config.json",
        metrics=f"{TRAINED}/metrics.csv",
    params:
        crosscoder=lambda w: values(S.crosscoders[w.crosscoder], "seeds", "threads"),
        code=code("crosscoder.train"),
        activations=f"{RESULTS}/activations",
        basis=lambda w, input: f"--basis {input.basis}" if "basis" in input.keys() else "",
        folder=lambda w, output: Path(output.weights).parent,
        state=training_state,
        config=CONFIG,
    log:
        f"{RESULTS}/logs/train/{{crosscoder}}-{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train/{{crosscoder}}-{{seed}}.tsv"
    conda:
        CONDA
    threads: lambda w: S.crosscoders[w.crosscoder].threads
    shell:
        "ontogeny train --config {params.config} --threads {threads}"
        " --crosscoder {wildcards.crosscoder} --seed {wildcards.seed}"
        " --activations {params.activations} {params.basis}"
        " --output {params.folder} --state {params.state} 2>&1 | tee {log}"
        " && rm -rf {params.state}"


rule fidelity:
    message:
        "Fidelity of {wildcards.crosscoder}, seed {wildcards.seed}"
    input:
        weights=f"{TRAINED}/crosscoder.safetensors",
        stacks=lambda w: stacks(S.crosscoders[w.crosscoder]),
        snapshots=snapshot_files(),
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        sites=f"{TRAINED}/fidelity.csv",
        features=f"{TRAINED}/density.parquet",
    params:
        spliced_blocks=S.analysis.spliced_blocks,
        floor=S.analysis.direction_floor,
        code=code("crosscoder.fidelity"),
        folder=lambda w, input: Path(input.weights).parent,
        activations=f"{RESULTS}/activations",
        snapshots=f"{RESULTS}/snapshots",
        config=CONFIG,
    log:
        f"{RESULTS}/logs/fidelity/{{crosscoder}}-{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fidelity/{{crosscoder}}-{{seed}}.tsv"
    conda:
        CONDA
    shell:
        "ontogeny fidelity --config {params.config} --threads {threads}"
        " --crosscoder {params.folder} --activations {params.activations}"
        " --snapshots {params.snapshots} --tokens {input.tokens}"
        " --sites {output.sites} --features {output.features} 2>&1 | tee {log}"

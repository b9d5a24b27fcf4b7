rule basis:
    input:
        lambda w: stacks(S.crosscoders[basis_owner(w)]),
        rows=lambda w: rows(S.crosscoders[basis_owner(w)]),
    output:
        f"{RESULTS}/basis/{{sites}}.h5",
    log:
        f"{RESULTS}/logs/basis/{{sites}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/basis/{{sites}}.tsv"
    conda:
        CONDA
    threads: 2
    params:
        basis=values(S.basis),
        code=code("basis.principal"),
        owner=basis_owner,
        activations=ACTIVATIONS,
        config=CONFIG,
    message:
        "Principal subspace of {wildcards.sites}"
    shell:
        "ontogeny basis --config {params.config} --threads {threads} --crosscoder {params.owner}"
        " --activations {params.activations} --output {output} 2>&1 | tee {log}"


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
    threads: lambda w: S.crosscoders[w.crosscoder].threads
    params:
        crosscoder=lambda w: values(S.crosscoders[w.crosscoder], "seeds", "threads"),
        code=code("crosscoder.train"),
        activations=ACTIVATIONS,
        basis=lambda w, input: f"--basis {input.basis}" if "basis" in input.keys() else "",
        folder=lambda w, output: Path(output.weights).parent,
        state=training_state,
        config=CONFIG,
    message:
        "Training the crosscoder {wildcards.crosscoder}, seed {wildcards.seed}"
    shell:
        "ontogeny train --config {params.config} --threads {threads}"
        " --crosscoder {wildcards.crosscoder} --seed {wildcards.seed}"
        " --activations {params.activations} {params.basis}"
        " --output {params.folder} --state {params.state} 2>&1 | tee {log}"
        " && rm -rf {params.state}"


rule fidelity:
    input:
        unpack(training_inputs),
        weights=f"{TRAINED}/crosscoder.safetensors",
        snapshots=snapshot_files(),
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        sites=f"{TRAINED}/fidelity.csv",
        features=f"{TRAINED}/density.parquet",
    log:
        f"{RESULTS}/logs/fidelity/{{crosscoder}}-{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fidelity/{{crosscoder}}-{{seed}}.tsv"
    conda:
        CONDA
    params:
        spliced_blocks=S.analysis.spliced_blocks,
        floor=S.analysis.direction_floor,
        basis=lambda w, input: f"--basis {input.basis}" if "basis" in input.keys() else "",
        code=code("crosscoder.fidelity"),
        folder=lambda w, input: Path(input.weights).parent,
        activations=ACTIVATIONS,
        snapshots=two_up("snapshots"),
        config=CONFIG,
    message:
        "Fidelity of {wildcards.crosscoder}, seed {wildcards.seed}"
    shell:
        "ontogeny fidelity --config {params.config} --threads {threads}"
        " --crosscoder {params.folder} --activations {params.activations}"
        " --snapshots {params.snapshots} --tokens {input.tokens} {params.basis}"
        " --sites {output.sites} --features {output.features} 2>&1 | tee {log}"

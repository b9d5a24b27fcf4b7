# Tasks, the features that each hangs on, and whether these are needed and enough; the figures.

CIRCUITS = f"{RESULTS}/circuits"
ATTRIBUTED = f"{CIRCUITS}/{{crosscoder}}"
OF_CURVES = ("curve_snapshots", "curve_points", "draws")  # keys of circuits


rule tasks:
    input:
        tokens=f"{RESULTS}/corpus/tokens.h5",
        tokenizer=f"{RESULTS}/corpus/tokenizer.json",
    output:
        tasks=f"{CIRCUITS}/tasks.h5",
        table=f"{CIRCUITS}/tasks.csv",
    log:
        f"{RESULTS}/logs/circuits/tasks.log",
    benchmark:
        f"{RESULTS}/benchmarks/circuits/tasks.tsv"
    localrule: True
    conda:
        CONDA
    params:
        circuits=values(S.circuits, "path_steps", *OF_CURVES),
        code=code("circuits.tasks"),
        config=CONFIG,
    message:
        "Making the tasks"
    shell:
        "ontogeny tasks --config {params.config}"
        " --tokens {input.tokens} --tokenizer {input.tokenizer}"
        " --output {output.tasks} --table {output.table} 2>&1 | tee {log}"


rule attribution:
    input:
        weights=lambda w: each_seed("crosscoder.safetensors")(w)[0],
        snapshots=snapshot_files(),
        tasks=f"{CIRCUITS}/tasks.h5",
    output:
        multiext(f"{ATTRIBUTED}/", "behaviour.csv", "attribution.parquet", "differences.h5"),
    log:
        f"{RESULTS}/logs/circuits/{{crosscoder}}-attribution.log",
    benchmark:
        f"{RESULTS}/benchmarks/circuits/{{crosscoder}}-attribution.tsv"
    conda:
        CONDA
    resources:
        **needs("attribution"),
    params:
        model=MODEL,
        settings=[S.circuits.path_steps, S.circuits.seed, S.analysis.bootstrap],
        code=code("circuits.attribution"),
        trained=lambda w, input: Path(input.weights).parent,
        snapshots=lambda w, input: Path(input.snapshots[0]).parent,
        folder=lambda w, output: Path(output[0]).parent,
        config=CONFIG,
    message:
        "What each task hangs on: {wildcards.crosscoder}"
    shell:
        "ontogeny attribution --config {params.config} --threads {threads}"
        " --crosscoder {params.trained} --snapshots {params.snapshots} --tasks {input.tasks}"
        " --output {params.folder} 2>&1 | tee {log}"


rule ablation:
    input:
        weights=lambda w: each_seed("crosscoder.safetensors")(w)[0],
        snapshots=snapshot_files(),
        tasks=f"{CIRCUITS}/tasks.h5",
        attributed=multiext(
            f"{ATTRIBUTED}/", "behaviour.csv", "attribution.parquet", "differences.h5"
        ),
    output:
        curves=f"{ATTRIBUTED}/curves.csv",
        summary=f"{ATTRIBUTED}/circuits.csv",
    log:
        f"{RESULTS}/logs/circuits/{{crosscoder}}-ablation.log",
    benchmark:
        f"{RESULTS}/benchmarks/circuits/{{crosscoder}}-ablation.tsv"
    conda:
        CONDA
    resources:
        **needs("ablation"),
    params:
        model=MODEL,
        settings=[
            S.circuits.seed,
            S.analysis.bootstrap,
            *(getattr(S.circuits, key) for key in OF_CURVES),
        ],
        code=code("circuits.ablation"),
        trained=lambda w, input: Path(input.weights).parent,
        snapshots=lambda w, input: Path(input.snapshots[0]).parent,
        folder=lambda w, input: Path(input.attributed[0]).parent,
        config=CONFIG,
    message:
        "Necessity and sufficiency: {wildcards.crosscoder}"
    shell:
        "ontogeny ablation --config {params.config} --threads {threads}"
        " --crosscoder {params.trained} --snapshots {params.snapshots} --tasks {input.tasks}"
        " --attribution {params.folder} --output {output.curves} --summary {output.summary}"
        " 2>&1 | tee {log}"


rule figure_abilities:
    input:
        features=f"{TABLES}/features.parquet",
        strengths=f"{TABLES}/strengths.parquet",
        behaviour=f"{CIRCUITS}/{S.primary}/behaviour.csv",
        attribution=f"{CIRCUITS}/{S.primary}/attribution.parquet",
    output:
        drawn("abilities", "From features to abilities", "Tasks and their key features"),
    log:
        f"{RESULTS}/logs/figures/abilities.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/abilities.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.abilities"),
        stem=stem,
    message:
        "Figure: tasks and their key features"
    shell:
        "ontogeny figure abilities"
        " --features {input.features}"
        " --strengths {input.strengths}"
        " --behaviour {input.behaviour}"
        " --attribution {input.attribution}"
        " --output {params.stem} 2>&1 | tee {log}"


rule figure_ablations:
    input:
        features=f"{TABLES}/features.parquet",
        behaviour=f"{CIRCUITS}/{S.primary}/behaviour.csv",
        attribution=f"{CIRCUITS}/{S.primary}/attribution.parquet",
        curves=f"{CIRCUITS}/{S.primary}/curves.csv",
    output:
        drawn("ablations", "From features to abilities", "Necessity and sufficiency"),
    log:
        f"{RESULTS}/logs/figures/ablations.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/ablations.tsv"
    localrule: True
    conda:
        CONDA
    params:
        code=code("figures.ablations"),
        stem=stem,
    message:
        "Figure: necessity and sufficiency"
    shell:
        "ontogeny figure ablations"
        " --features {input.features}"
        " --behaviour {input.behaviour}"
        " --attribution {input.attribution}"
        " --curves {input.curves}"
        " --output {params.stem} 2>&1 | tee {log}"

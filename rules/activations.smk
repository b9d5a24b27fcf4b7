rule extract:
    message:
        "Activations of step {wildcards.step}"
    input:
        weights=ancient(f"{RESULTS}/snapshots/step{{step}}/model.safetensors"),
        about=ancient(f"{RESULTS}/snapshots/step{{step}}/config.json"),
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        expand(f"{RESULTS}/activations/{{place}}/step{{{{step}}}}.h5", place=PLACES),
    params:
        model=MODEL,
        activations=values(S.activations),
        code=code("activations.extract"),
        snapshot=lambda w, input: Path(input.weights).parent,
        folder=f"{RESULTS}/activations",
        config=CONFIG,
    log:
        f"{RESULTS}/logs/extract/{{step}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/extract/{{step}}.tsv"
    conda:
        CONDA
    shell:
        "ontogeny extract --config {params.config} --threads {threads} --step {wildcards.step}"
        " --snapshot {params.snapshot} --tokens {input.tokens} --output {params.folder}"
        " 2>&1 | tee {log}"


rule stack:
    message:
        "Stacking the snapshots of {wildcards.place}"
    input:
        expand(f"{RESULTS}/activations/{{{{place}}}}/step{{step}}.h5", step=STEPS),
    output:
        f"{RESULTS}/activations/{{place}}/stack.h5",
    params:
        steps=STEPS,
        code=code("activations.store"),
        config=CONFIG,
    log:
        f"{RESULTS}/logs/stack/{{place}}.log",
    conda:
        CONDA
    shell:
        "ontogeny stack --config {params.config} --output {output} {input} 2>&1 | tee {log}"

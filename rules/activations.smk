rule extract:
    input:
        weights=f"{RESULTS}/snapshots/step{{step}}/model.safetensors",
        about=f"{RESULTS}/snapshots/step{{step}}/config.json",
        tokens=f"{RESULTS}/corpus/tokens.h5",
    output:
        expand(f"{RESULTS}/activations/{{place}}/step{{{{step}}}}.h5", place=PLACES),
        rows=kept(
            expand(f"{RESULTS}/activations/{{place}}/step{{{{step}}}}.train.h5", place=PLACES)
        ),
    log:
        f"{RESULTS}/logs/extract/{{step}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/extract/{{step}}.tsv"
    conda:
        CONDA
    params:
        model=MODEL,
        activations=values(S.activations, "keep"),
        code=code("activations.extract"),
        snapshot=lambda w, input: Path(input.weights).parent,
        folder=lambda w, output: Path(output[0]).parent.parent,
        config=CONFIG,
    message:
        "Activations of step {wildcards.step}"
    shell:
        "ontogeny extract --config {params.config} --threads {threads} --step {wildcards.step}"
        " --snapshot {params.snapshot} --tokens {input.tokens} --output {params.folder}"
        " 2>&1 | tee {log}"


rule stack:
    input:
        files=expand(f"{RESULTS}/activations/{{{{place}}}}/step{{step}}.h5", step=STEPS),
        rows=expand(f"{RESULTS}/activations/{{{{place}}}}/step{{step}}.train.h5", step=STEPS),
    output:
        f"{RESULTS}/activations/{{place}}/stack.h5",
    log:
        f"{RESULTS}/logs/stack/{{place}}.log",
    conda:
        CONDA
    params:
        steps=STEPS,
        code=code("activations.store"),
        config=CONFIG,
    message:
        "Stacking the snapshots of {wildcards.place}"
    shell:
        "ontogeny stack --config {params.config} --output {output} {input.files} 2>&1 | tee {log}"

# The static site: every feature, its history, its contexts. `snakemake --cores 2 atlas`.


def atlas_inputs():
    """What the site is made from, by name: of the analyses, those that the experiment has."""
    found = {
        "weights": [f"{folder}/crosscoder.safetensors" for folder in SEEDS],
        "fidelity": [f"{folder}/{name}" for folder in SEEDS for name in OF_FIDELITY],
        "tables": multiext(f"{TABLES}/", "features.parquet", "matches.csv", "turning_point.json"),
        "phases": multiext(f"{RESULTS}/phases/", "phases.csv", "levels.json"),
        "stacks": stacks(PRIMARY),
        **training_log(),
    }
    of_analyses = {
        "kinds": [f"{TABLES}/kinds.parquet"],
        "contexts": [f"{TABLES}/contexts.h5"],
        "complexity": [SPAN.format(crosscoder=S.primary)],
        "circuits": multiext(f"{CIRCUITS}/{S.primary}/", "attribution.parquet", "behaviour.csv"),
    }
    return found | {name: of_analyses[name] for name in S.analyses if name in of_analyses}


def no_atlas(wildcards):
    """Why an experiment has no site."""
    raise WorkflowError(
        f"atlas: {S.primary} has no feature histories to show, which need a trained decoder over "
        "four or more snapshots of one layer and stream; choose another primary"
    )


OF_FIDELITY = ("fidelity.csv", "density.parquet")
PAGE = sorted(p for p in (SOURCE / "src/ontogeny/atlas/page").rglob("*") if p.is_file())


if ATLASES:

    rule atlas:
        input:
            **atlas_inputs(),
        output:
            directory(ATLAS),
        log:
            f"{RESULTS}/logs/atlas.log",
        benchmark:
            f"{RESULTS}/benchmarks/atlas.tsv"
        conda:
            CONDA
        resources:
            **needs("atlas"),
        params:
            settings=[
                S.name,
                values(S.snapshots, "remote_code"),
                values(PRIMARY, "threads"),
                values(S.contexts) if "contexts" in S.analyses else "",
                [S.analysis.matched_cosine, S.analysis.direction_floor, S.analysis.presence],
                "dimensionality" in S.analyses,
            ],
            code=code("atlas.build"),
            page=[digest_file(path) for path in PAGE],
            folder=RESULTS,
            config=CONFIG,
        message:
            "The atlas"
        shell:
            "ontogeny atlas --config {params.config} --threads {threads} --folder {params.folder}"
            " --output {output} 2>&1 | tee {log}"

else:

    rule atlas:
        input:
            no_atlas,
        localrule: True

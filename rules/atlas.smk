# The static site: every feature, its history, its contexts. `snakemake --cores 2 atlas`.


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
                [MODEL, STEPS],
                values(PRIMARY, "threads", "devices"),
                values(S.contexts) if "contexts" in S.analyses else "",
                [S.analysis.matched_cosine, S.analysis.direction_floor, S.analysis.presence],
                "dimensionality" in S.analyses,
            ],
            code=code("atlas.build"),
            page=[digest_file(path) for path in ATLAS_PAGE],
            folder=lambda w, output: Path(output[0]).parent,
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

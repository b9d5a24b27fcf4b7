# The snapshots of the language model: trained here, revisions of a hub, or folders.
#
# Training states are kept in an archive that the digest MODEL names. The wanted steps are not a
# parameter of the training, so a longer list trains nothing again: a missing snapshot is reached
# from the nearest earlier state, and nothing else changes. Files from a hub are linked from
# huggingface_hub's own cache. Weights in folders are linked, not copied, if the file system allows
# it; a checkpoint that changes is taken again.

SOURCE = S.snapshots.source
UNTRAINED = untrained()


if SOURCE == "pretrain":

    # There are a few jobs, so that snapshots are used while the training goes on.
    rule pretrain:
        input:
            trained_before,
            tokens=at("tokens"),
        output:
            touch(at("trained_mark")),
        log:
            log("pretrain/{leg}"),
        benchmark:
            benchmark_of("pretrain/{leg}")
        priority: FIRST["pretrain"]
        retries: RETRIES
        conda:
            CONDA
        threads: S.snapshots.pretrain.threads
        resources:
            **needs("pretrain"),
        params:
            model=MODEL,
            experiment=experiment,
        message:
            f"Training the language model: {{wildcards.leg}} of {S.snapshots.pretrain.steps} steps"
        shell:
            "ontogeny pretrain {params.experiment} --until {wildcards.leg} --threads {threads} 2>&1"
            " | tee {log}"

    rule training_log:
        input:
            trained=[str(E.path("trained_mark", leg=leg)) for leg in E.legs],
            tokens=at("tokens"),
        output:
            at("log"),
        log:
            log("training_log"),
        conda:
            CONDA
        threads: S.snapshots.pretrain.threads
        resources:
            **needs("training_log"),
        params:
            model=MODEL,
            snapshots=STEPS,
            experiment=experiment,
        message:
            "Log of the language model's training"
        shell:
            "ontogeny pretrain {params.experiment} --log --threads {threads} 2>&1 | tee {log}"

else:

    # Only the content of the tokenizer counts, not its folder: a later checkpoint has the same
    # tokenizer, so the text is not tokenised again.
    rule tokenizer:
        output:
            directory(at("own_tokenizer")),
        log:
            log("tokenizer"),
        localrule: SOURCE == "local"
        conda:
            CONDA
        resources:
            **needs("tokenizer"),
        params:
            model=MODEL,
            tokenizer=S.snapshots.hub.tokenizer if S.snapshots.hub else None,
            files=tokenizer_digests(),
            experiment=experiment,
        message:
            "Fetching the model's tokenizer"
        shell:
            "ontogeny tokenizer {params.experiment} 2>&1 | tee {log}"


rule snapshot:
    input:
        unpack(snapshot_inputs),
    output:
        directory(at("snapshot")),
    log:
        log("snapshot/{step}"),
    benchmark:
        benchmark_of("snapshot/{step}")
    localrule: SOURCE == "pretrain" and not UNTRAINED
    conda:
        CONDA
    threads: S.snapshots.pretrain.threads if UNTRAINED else 1
    resources:
        **needs("pretrain" if SOURCE == "pretrain" else "snapshot"),
    params:
        model=MODEL,
        experiment=experiment,
        reads=reads(snapshot_origin),
    message:
        "Snapshot of step {wildcards.step}"
    shell:
        "ontogeny snapshot {params.experiment} {wildcards.step} --threads {threads} 2>&1 | tee {log}"

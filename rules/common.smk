# Helpers of the rules: the settings, names of places, digests of code. No rule stands here.

from pathlib import Path

import yaml

from ontogeny import preflight, provenance
from ontogeny import settings as schema
from ontogeny.files import InputError, digest_file, digest_value, write_text

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

# The resolved configuration stands beside its results; the commands read it there.
_resolved = yaml.safe_dump(S.model_dump(mode="json"), sort_keys=False)
if workflow.is_main_process and not (
    Path(CONFIG).exists() and Path(CONFIG).read_text() == _resolved
):
    write_text(CONFIG, _resolved)


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


WHEELS = f"results/downloads/{digest_file(S.corpus.requirements)[:16]}"
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


def snapshot_files():
    """Every snapshot's weights. Ancient: the archive may grow without changing those it had."""
    return ancient(expand(f"{RESULTS}/snapshots/step{{step}}/model.safetensors", step=STEPS))


def has_features(name):
    """Whether a crosscoder's features have histories: trained, over four snapshots of one place."""
    c = S.crosscoders[name]
    sites = c.outputs or c.inputs
    count = len(STEPS) if sites.snapshots == "all" else len(sites.snapshots)
    return c.train_decoder and len(sites.layers) == len(sites.streams) == 1 and count >= 4


CONDA = "../envs/ontogeny.yaml"

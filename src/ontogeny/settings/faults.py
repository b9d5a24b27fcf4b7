"""Impossible combinations of keys, one line each: the key, what is wrong, and the correction."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from ontogeny import registry
from ontogeny.declarations import function
from ontogeny.settings.base import Section, SettingsError, expanded
from ontogeny.settings.experiment import Settings
from ontogeny.settings.sections import (
    SNAPSHOT_SOURCES,
    Crosscoder,
    Pretrain,
)
from ontogeny.settings.text import TEXT_SOURCES


def faults(s: Settings) -> Iterator[str]:
    """Yield a line for each impossible combination, with the key and the correction.

    Faults that depend on the shape of a model that is not trained here are found later
    (preflight.py).
    """
    yield from _unset_variables(s)
    yield from _one_of("corpus", s.corpus, TEXT_SOURCES)
    here = list(_one_of("snapshots", s.snapshots, SNAPSHOT_SOURCES))
    if here:
        yield from here
        return
    a, steps = s.activations, s.snapshots.steps
    if steps == "all":
        if s.snapshots.local is None:
            yield "snapshots.steps: 'all' works only with snapshots.local; list the steps"
    elif not steps:
        yield "snapshots.steps: the list is empty; list the steps to read"
    elif list(steps) != sorted(set(steps)):
        yield "snapshots.steps: steps must ascend without repeats; sort the list"
    elif steps[0] < 0:
        yield f"snapshots.steps: step {steps[0]} is negative; start at 0"
    if s.snapshots.pretrain is not None:
        yield from _pretrain_faults(s, s.snapshots.pretrain)
    local = s.snapshots.local
    if local is not None and isinstance(local.folders, str) and "{step" not in local.folders:
        yield (
            f"snapshots.local.folders: {local.folders} has no {{step}}; put it where the folders' "
            "names have the step, or list the folders"
        )
    hub = s.snapshots.hub
    if hub is not None and hub.revision is not None and "{step" not in hub.revision:
        yield (
            f"snapshots.hub.revision: {hub.revision} has no {{step}}; put it where the revisions' "
            "names have the step"
        )
    if s.analysis.absence > s.analysis.presence:
        yield (
            f"analysis.absence: {s.analysis.absence:g} exceeds analysis.presence, "
            f"{s.analysis.presence:g}; lower it to that or less"
        )
    b = s.basis
    if b.dimensions is None and b.max_variance_lost > 1 - b.least_kept + 1e-9:
        yield (
            f"basis.least_kept: {b.least_kept:g} of a site's variance cannot be kept where "
            f"max_variance_lost allows to lose {b.max_variance_lost:g}; lower one of them"
        )
    if len(set(a.layers)) < len(a.layers) or len(set(a.streams)) < len(a.streams):
        yield "activations: layers and streams must not repeat; remove the repeats"
    if min(a.layers) < 0:
        yield f"activations.layers: layer {min(a.layers)} is negative; count from 0"
    if a.mode == "streamed" and a.budget is not None:
        yield "activations.budget: applies only to mode: cached; remove it"
    if a.mode == "cached" and a.together is not None:
        yield "activations.together: applies only to mode: streamed; remove it"
    if s.replicates and s.snapshots.pretrain is None:
        yield (
            "replicates: possible only for models that are trained here (snapshots.pretrain); "
            "remove"
        )
    elif s.replicates:
        yield from _replicate_faults(s)
    if s.primary not in s.crosscoders:
        yield f"primary: no crosscoder is called '{s.primary}'; name one of {list(s.crosscoders)}"
    all_rows = s.corpus.train_blocks * s.corpus.context
    for name, c in s.crosscoders.items():
        key = f"crosscoders.{name}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            yield f"{key}: this name becomes a folder; use only letters, digits, _ and -"
        for end, sites in (("inputs", c.inputs), ("outputs", c.outputs)):
            if sites is None:
                continue
            for field, wanted, kept in (
                ("layers", sites.layers, a.layers),
                ("streams", sites.streams, a.streams),
                ("snapshots", [] if sites.snapshots == "all" else sites.snapshots, steps),
            ):
                absent = [x for x in wanted if kept != "all" and x not in kept]
                if absent:
                    where = "snapshots.steps" if field == "snapshots" else f"activations.{field}"
                    yield f"{key}.{end}.{field}: {absent[0]} is not in {where}; add it there"
        yield from _unused(key, c)
        if c.basis != "full" and c.outputs is not None:
            yield f"{key}.outputs: outputs that differ from the inputs need basis: full; set it"
        if c.token_table and c.outputs not in (None, c.inputs):
            yield (
                f"{key}.token_table: needs outputs equal to the inputs; remove token_table or "
                "outputs"
            )
        if c.gate == "snapshot" and c.basis == "principal":
            yield f"{key}.gate: a gate per snapshot needs basis: hybrid or full; set it"
        if c.activation == "relu" and c.basis == "principal":
            yield (
                f"{key}.basis: the L1 penalty of relu needs each site's norm; set basis: hybrid "
                "or full"
            )
        if c.gate == "snapshot" and c.activation == "relu":
            yield f"{key}.gate: relu has no gate per snapshot; set gate: feature"
        if c.activation == "batch_topk" and max(c.k, c.k_start or 0) > c.features:
            which, value = ("k", c.k) if c.k > c.features else ("k_start", c.k_start)
            yield (
                f"{key}.{which}: {value} exceeds the {c.features} features; lower {which} or raise "
                "features"
            )
        if c.k_start is not None and c.k_start < c.k:
            yield f"{key}.k_start: {c.k_start} is below k, {c.k}, and k can only fall; raise it"
        if c.l0 is not None and c.l0 > c.features:
            yield f"{key}.l0: {c.l0:g} exceeds the {c.features} features; lower it"
        if c.aux > c.features:
            yield f"{key}.aux_features: {c.aux} exceeds features {c.features}; lower it"
        if c.aux and c.aux_k > c.aux and c.aux_k != type(c).model_fields["aux_k"].default:
            yield f"{key}.aux_k: {c.aux_k} exceeds aux_features {c.aux}; lower it"
        if c.batch_rows > all_rows:
            yield (
                f"{key}.batch_rows: {c.batch_rows} exceeds the {all_rows} training rows; "
                "lower it or raise corpus.train_blocks"
            )
        if len(set(c.seeds)) < len(c.seeds):
            yield f"{key}.seeds: a seed repeats; remove it"
        if c.devices > 1:
            yield from _device_faults(s, key, c)
    if s.activations.mode == "streamed" and len({c.devices for c in s.crosscoders.values()}) > 1:
        counts = ", ".join(f"{name} {c.devices}" for name, c in s.crosscoders.items())
        yield (
            f"crosscoders.*.devices: dictionaries that share streamed rows need the same number "
            f"({counts}); set one for all, or activations.mode: cached"
        )
    yield from _analysis_faults(s)


def paths(s: Settings) -> Iterator[tuple[str, str]]:
    """Every path of the configuration, with its key."""
    c, local = s.corpus, s.snapshots.local
    if c.wheels is not None:
        yield "corpus.wheels.requirements", c.wheels.requirements
    for path in c.files.paths if c.files else ():
        yield "corpus.files.paths", path
    if c.tokens is not None:
        yield "corpus.tokens.path", c.tokens.path
    if c.dataset is not None:
        yield "corpus.dataset.name", c.dataset.name
    if local is not None:
        named = [local.folders] if isinstance(local.folders, str) else local.folders
        yield from (("snapshots.local.folders", path) for path in named)
    if local is not None and local.tokenizer is not None:
        yield "snapshots.local.tokenizer", local.tokenizer
    for key in ("scratch", "cache"):
        folder = getattr(s.storage, key)
        if folder is not None:
            yield f"storage.{key}", folder


def _unset_variables(s: Settings) -> Iterator[str]:
    """Lines for $VARIABLES in paths that are not set in the environment."""
    for key, path in paths(s):
        names = re.findall(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", expanded(path))
        if names and not os.path.exists(path):  # a file name may contain the sign
            name = "".join(names[0])
            yield f"{key}: {path}: the variable {name} is not set; export it, or write the path out"


ONLY = {  # keys of a crosscoder that apply to one activation only
    "k_start": "batch_topk",
    "penalty": "jumprelu",
    "l0": "jumprelu",
    "start_active": "jumprelu",
    "refit": "jumprelu",
}


def _unused(key: str, c: Crosscoder) -> Iterator[str]:
    """Lines for keys that are written but have no effect given the others."""
    for name, activation in ONLY.items():
        # A refit under batch_topk gives each segment of training its own features.
        if c.activation != activation and getattr(c, name) != type(c).model_fields[name].default:
            yield f"{key}.{name}: applies only to activation: {activation}; remove it"
    if c.scale != "residual" and not c.token_table:
        yield f"{key}.scale: applies only with token_table: true; set that, or remove it"
    if c.activation == "batch_topk" and c.gate == "snapshot" and c.aux_features:
        yield f"{key}.aux_features: AuxK needs gate: feature; set aux_features: 0 or that gate"


def _device_faults(s: Settings, key: str, c: Crosscoder) -> Iterator[str]:
    """Lines for a training that several processes cannot share."""
    if c.features % c.devices:
        yield (
            f"{key}.devices: {c.devices} does not divide the {c.features} features; choose a "
            "number that does"
        )
    snapshots = len(s.snapshots.chosen)
    if s.activations.mode == "streamed" and c.devices > snapshots:
        yield (
            f"{key}.devices: {c.devices} devices share {snapshots} snapshots when rows are "
            "streamed, at least one each; lower it"
        )
    if ":" in s.device:
        yield f"device: {s.device} is one GPU, but {key}.devices is {c.devices}; set device: cuda"


def _analysis_faults(s: Settings) -> Iterator[str]:
    """Lines for analyses that do not exist or cannot run, and for faults in their own keys."""
    known = registry.all_analyses()
    for name in s.analyses:
        if name not in known:
            yield f"analyses: there is no analysis '{name}'; choose from {list(known)}"
            return
        if known[name].optional and getattr(s, name) is None:
            yield f"analyses: {name} needs the section {name}; add it, or remove it from the list"
    if len(set(s.analyses)) < len(s.analyses):
        yield "analyses: one is listed twice; remove it"
    if s.primary not in s.crosscoders:
        return
    for analysis in known.values():
        if analysis.faults:
            yield from function(analysis.faults)(s)


def _replicate_faults(s: Settings) -> Iterator[str]:
    def described(of: Settings) -> dict[str, Any]:
        return of.model_dump(exclude={"name"})

    itself = s.replicate("")
    known_faults = set(faults(itself))  # reported once, for the experiment
    seen = [("the experiment itself", described(itself))]
    for name in s.replicates:
        key = f"replicates.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9]*", name):
            yield (
                f"{key}: this name becomes a folder and part of rules' names; use only lower-case "
                "letters and digits"
            )
        try:
            own = s.replicate(name)
        except SettingsError as error:
            yield str(error)
            continue
        except ValidationError as error:
            for e in error.errors():
                where = ".".join(map(str, e["loc"]))
                mend = "no such key" if e["type"] == "extra_forbidden" else "not a valid value"
                yield f"{key}.{where}: {mend}; correct it (schemas/config.schema.json)"
            continue
        if own.corpus != s.corpus:
            yield (
                f"{key}: changes corpus, but replicates must read the same text for their "
                "features to be matched; write a separate experiment"
            )
        for fault in faults(own):
            if fault not in known_faults:
                yield f"{key}: {fault}"
        about = described(own)
        for other, known in seen:
            if about == known:
                yield f"{key}: the same as {other}; give it another seed"
                break
        seen.append((key, about))


def _one_of(key: str, section: Section, names: tuple[str, ...]) -> Iterator[str]:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        yield f"{key}: exactly one of {', '.join(names)} is needed, but {found} given; keep one"


def _pretrain_faults(s: Settings, p: Pretrain) -> Iterator[str]:
    if p.width % p.heads:
        yield (
            f"snapshots.pretrain.heads: {p.heads} does not divide the width {p.width}; choose one "
            "that does"
        )
    turning = int(p.width // p.heads * p.rotary_share)
    if turning < 2 or turning % 2:
        yield (
            f"snapshots.pretrain.rotary_share: {p.rotary_share} of a head's width of "
            f"{p.width // p.heads} is {turning}, but rotary positions need an even number, at "
            "least 2; choose another share, or fewer heads"
        )
    late = [] if s.snapshots.steps == "all" else [t for t in s.snapshots.steps if t > p.steps]
    if late:
        yield (
            f"snapshots.steps: step {late[0]} is beyond the training's {p.steps} steps; remove it "
            "or raise snapshots.pretrain.steps"
        )
    if p.warmup_steps > p.steps:
        yield (
            f"snapshots.pretrain.warmup_steps: {p.warmup_steps} exceeds snapshots.pretrain.steps; "
            "lower it"
        )
    for layer in s.activations.layers:
        if layer >= p.layers:
            yield (
                f"activations.layers: layer {layer} does not exist; the model has {p.layers}, "
                f"numbered 0 to {p.layers - 1}"
            )
    for name in {"bos", "padding"} & set(s.activations.leave_out):
        yield f"activations.leave_out: a model that is trained here has no {name} token; remove it"
    if s.corpus.bos:
        yield (
            "corpus.bos: a model that is trained here has no token for the beginning of a text; "
            "remove this key"
        )
    if s.corpus.tokens is not None:
        yield "corpus.tokens: a model that is trained here has no tokenizer yet; use text instead"
    if s.corpus.dataset is not None and s.corpus.pretrain_blocks is None:
        yield (
            "corpus.pretrain_blocks: missing; set it, since the length of a streamed dataset is "
            "not known"
        )

"""What of a bill does not fit, and which key to lower."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ontogeny.plan.bill import Bill, File, bill
from ontogeny.plan.cost import Terms
from ontogeny.settings import Settings

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))

# Which key weighs on a term of memory or a kind of file, and what to do. {c} is the crosscoder.
WINDOWS = ("activations.window", "lower activations.window")
PIECES = ("snapshots.steps", "lower the number of snapshots, activations.layers or streams")
MODEL = ("snapshots", "choose a smaller model")
FEATURES = ("crosscoders.{c}.features", "lower crosscoders.{c}.features")
BATCH = ("crosscoders.{c}.batch_rows", "lower crosscoders.{c}.batch_rows")
SEEDS = ("crosscoders.{c}.seeds", "keep one of crosscoders.{c}.seeds, or lower its features")
DECODERS = (
    "crosscoders.{c}.features",
    "lower crosscoders.{c}.features or the number of snapshots",
)
STREAMED = (
    "activations.mode",
    "set activations.mode: cached with activations.budget, or lower the number of snapshots",
)
SUBSPACE = ("basis.largest", "lower basis.dimensions and basis.largest")
HELD_OUT = ("corpus.held_out_blocks", "lower corpus.held_out_blocks")
SPAN = ("span.features", "lower span.features or span.contexts")
PROMPTS = ("circuits.pairs", "lower circuits.pairs, or name fewer circuits.tasks")
MENDS: dict[str, tuple[str, str]] = {
    "a snapshot as it loads": MODEL,
    "model": MODEL,
    "weights as they begin": FEATURES,
    "snapshots on the device": STREAMED,
    "rows of a forward pass": PIECES,
    "forward pass": ("corpus.context", "lower corpus.context or choose a smaller model"),
    "windows": WINDOWS,
    "check of a window": WINDOWS,
    "order of the rows": ("corpus.train_blocks", "lower corpus.train_blocks"),
    "rows of a piece": PIECES,
    "pieces read ahead": PIECES,
    "covariance": ("basis.exact_limit", "lower basis.exact_limit"),
    "directions searched": SUBSPACE,
    "directions": SUBSPACE,
    "moments": ("crosscoders.{c}.moments", "set crosscoders.{c}.moments: compact, or lower its "
                "features"),
    "weights": FEATURES,
    "gradients": FEATURES,
    "silent rows": FEATURES,
    "pre-activations": BATCH,
    "batch": BATCH,
    "batches read ahead": BATCH,
    "messages": BATCH,
    "launcher": ("crosscoders.{c}.devices", "set crosscoders.{c}.devices: 1"),
    "pairs": ("crosscoders.{c}.k", "lower crosscoders.{c}.k or batch_rows"),
    "AuxK": ("crosscoders.{c}.aux_features", "lower crosscoders.{c}.aux_features or batch_rows"),
    "full decoders": DECODERS,
    "full decoders, to save": DECODERS,
    "full decoders of all seeds": SEEDS,
    "directions and norms": DECODERS,
    "decoders of a site": FEATURES,
    "matching": SEEDS,
    "active features": ("analysis.spliced_blocks", "lower analysis.spliced_blocks"),
    "rows of a site": ("analysis.spliced_blocks", "lower analysis.spliced_blocks"),
    "rows of PCA": PIECES,
    "weights as they load": FEATURES,
    "a snapshot's decoders": FEATURES,
    "encoders of a site": FEATURES,
    "table of features": FEATURES,
    "active positions": HELD_OUT,
    "sums by group": HELD_OUT,
    "rows read": HELD_OUT,
    "nulls": ("analysis.permutations", "lower analysis.permutations"),
    "contexts": ("contexts.top", "lower contexts.top, quantiles and near_misses"),
    "logit lens": ("contexts.lens_snapshots", "set contexts.lens_snapshots: 0"),
    "contexts of features": SPAN,
    "pairs on suffixes": SPAN,
    "keys and values": SPAN,
    "scalings": ("analyses", "leave presence out of analyses"),
    "probes": ("presence_tests.features", "lower presence_tests.features"),
    "probes' scores": ("presence_tests.features", "lower presence_tests.features"),
    "bootstrap samples": ("analysis.bootstrap", "lower analysis.bootstrap"),
    "permutations": SPAN,
    "attention": ("analyses", "leave induction out of analyses"),
    "table of heads": ("heads.blocks", "lower heads.blocks"),
    "values of a task": PROMPTS,
    "gradients of a pass": ("analyses", "leave circuits out of analyses"),
    "rows of the prompts": PROMPTS,
    "differences": PROMPTS,
    "attributions": PROMPTS,
    "n-grams": ("corpus.train_blocks", "lower corpus.train_blocks"),
    "n-gram probabilities": ("corpus.context", "lower corpus.context"),
}  # fmt: skip
PRETRAIN = dict.fromkeys(
    ("weights", "gradients", "moments"),
    ("snapshots.pretrain.width", "lower snapshots.pretrain.width or layers"),
)
PRETRAIN["batch"] = ("snapshots.pretrain.batch_blocks", "lower snapshots.pretrain.batch_blocks")
DISK: dict[str, tuple[str, str]] = {
    "training rows": (
        "activations.budget",
        "set activations.mode: streamed, or lower activations.budget, corpus.train_blocks or the "
        "number of snapshots",
    ),
    "projected rows": (
        "corpus.train_blocks",
        "set activations.mode: streamed, or lower corpus.train_blocks or basis.dimensions",
    ),
    "held-out rows": (
        "corpus.held_out_blocks",
        "lower corpus.held_out_blocks or the number of snapshots",
    ),
    "snapshots": ("snapshots.steps", "list fewer steps, or choose a smaller model"),
    "training states": ("snapshots.steps", "list fewer steps, or lower snapshots.pretrain.width"),
    "tokens": ("corpus.train_blocks", "lower corpus.train_blocks"),
    "basis": SUBSPACE,
    "crosscoders": ("crosscoders", "lower features, seeds or the number of crosscoders"),
    "tables": ("crosscoders", "lower features"),
}


def amount(size: float) -> str:
    """A number of bytes to read, in the unit that suits it."""
    unit, name = next(((u, n) for u, n in UNITS if size >= u), (1, "B"))
    if unit == 1:
        return f"{size:.0f} B"
    return f"{size / unit:.1f} {name}"


def _disk_faults(b: Bill) -> Iterator[str]:
    """What does not fit, on each file system that the experiment's files lie on."""
    here: list[File] = []
    elsewhere: list[File] = []
    for file in b.files:
        top = file.path.relative_to(b.folder).parts[0]
        (elsewhere if top in b.machine.scratch_holds else here).append(file)
    m = b.machine
    for files, folder, free in ((here, m.folder, m.disk), (elsewhere, m.scratch, m.scratch_disk)):
        needed = sum(file.missing for file in files)
        if needed <= free:
            continue
        kinds: dict[str, int] = {}
        for file in files:
            kinds[file.kind] = kinds.get(file.kind, 0) + file.missing
        kind = max(kinds, key=lambda name: kinds[name])
        key, mend = DISK[kind]
        also = f", of {amount(needed)} in all" if kinds[kind] < 0.9 * needed else ""
        yield (
            f"{key}: the {kind} need {amount(kinds[kind])} more on disk{also}, {folder} has "
            f"{amount(free)} free; {mend}"
        )


def _memory_faults(b: Bill, where: str, free: int | None) -> Iterator[str]:
    if not free:
        return
    said = set()
    for stage in b.stages:
        terms: Terms = getattr(stage.job, where)
        needed = sum(terms.values())
        if not stage.left or needed <= free:
            continue
        known = MENDS | (PRETRAIN if stage.name == "pretrain" else {})
        most = sorted((t for t in terms if t in known), key=lambda name: -terms[name])
        key, mend = (text.format(c=stage.crosscoder) for text in known[most[0]])
        if mend in said:
            continue
        said.add(mend)
        others = dict.fromkeys(known[t][1].format(c=stage.crosscoder) for t in most[1:3]
                               if terms[t] > 0.1 * needed)  # fmt: skip
        also = "".join(f", or {other}" for other in others if other != mend)
        what = ", ".join(f"{name} {amount(terms[name])}" for name in most[:2])
        place = "this machine" if where == "host" else b.machine.device_name
        kind = "memory" if where == "host" else "memory on the device"
        yield (
            f"{key}: {stage.name} needs {amount(needed)} of {kind} ({what}), {place} has "
            f"{amount(free)}; {mend}{also}"
        )


def too_large(b: Bill, memory: bool = True) -> list[str]:
    """What of a bill does not fit, one line each with the numbers and the keys to lower.

    Parameters
    ----------
    memory : whether memory counts beside the disk.
    """
    if not memory:
        return list(_disk_faults(b))
    return [
        *_disk_faults(b),
        *_memory_faults(b, "host", b.machine.host),
        *_memory_faults(b, "device", b.machine.device),
    ]


def faults(s: Settings, results: str | Path, memory: bool = True) -> list[str]:
    """What of an experiment cannot fit here: disk, memory of the host, memory of the device."""
    return too_large(bill(s, results), memory)

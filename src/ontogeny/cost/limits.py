"""What of a bill does not fit, and which key to lower."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ontogeny.cost.bill import Bill, Line, bill
from ontogeny.cost.terms import Terms, merged
from ontogeny.settings import Settings

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))

# Mend by key and by the terms of memory that the key weighs on; {c} is the crosscoder. A term of a
# declared cost that has a key of the settings as a factor is mended by that key, if it is not here.
FEATURES = "lower crosscoders.{c}.features"
BATCH = "lower crosscoders.{c}.batch_rows"
PIECES = "lower the number of snapshots, activations.layers or streams"
MENDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("snapshots", "choose a smaller model"): ("a snapshot as it loads", "model"),
    (
        "activations.mode",
        "set activations.mode: cached with activations.budget, or lower the number of snapshots",
    ): ("snapshots on the device",),
    ("snapshots.steps", PIECES): (
        "rows of a forward pass", "rows of a piece", "pieces read ahead", "rows of a site",
    ),
    ("corpus.context", "lower corpus.context or choose a smaller model"): ("forward pass",),
    ("activations.window", "lower activations.window"): ("windows", "check of a window"),
    ("corpus.train_blocks", "lower corpus.train_blocks"): ("order of the rows", "text"),
    ("basis.exact_limit", "lower basis.exact_limit"): ("covariance",),
    ("basis.largest", "lower basis.dimensions and basis.largest"): (
        "directions searched", "directions",
    ),
    ("crosscoders.{c}.features", FEATURES): (
        "weights as they begin", "weights", "gradients", "silent rows", "crosscoder", "features",
    ),
    ("crosscoders.{c}.moments", "set crosscoders.{c}.moments: compact, or lower its features"): (
        "moments",
    ),
    ("crosscoders.{c}.batch_rows", BATCH): (
        "pre-activations", "batch", "batches read ahead", "messages",
    ),
    ("crosscoders.{c}.devices", "set crosscoders.{c}.devices: 1"): ("launcher",),
    ("crosscoders.{c}.k", "lower crosscoders.{c}.k or batch_rows"): ("pairs",),
    ("crosscoders.{c}.aux_features", "lower crosscoders.{c}.aux_features or batch_rows"): ("AuxK",),
    ("crosscoders.{c}.features", f"{FEATURES} or the number of snapshots"): (
        "full decoders", "full decoders, to save",
    ),
    (
        "crosscoders.{c}.seeds",
        "keep one of crosscoders.{c}.seeds, or lower its features",
    ): ("full decoders * seeds", "cosines"),
    ("corpus.held_out_blocks", "lower corpus.held_out_blocks"): (
        "active features", "held-out rows",
    ),
}  # fmt: skip
OF_TERMS = {term: mend for mend, terms in MENDS.items() for term in terms}
OF_PRETRAIN = dict.fromkeys(
    ("weights", "gradients", "moments"),
    ("snapshots.pretrain.width", "lower snapshots.pretrain.width or layers"),
) | {"batch": ("snapshots.pretrain.batch_blocks", "lower snapshots.pretrain.batch_blocks")}
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
    "basis": ("basis.largest", "lower basis.dimensions and basis.largest"),
    "crosscoders": ("crosscoders", "lower features, seeds or the number of crosscoders"),
    "tables": ("crosscoders", "lower features"),
}


def amount(size: float) -> str:
    """A number of bytes to read, in the unit that suits it."""
    unit, name = next(((u, n) for u, n in UNITS if size >= u), (1, "B"))
    return f"{size:.0f} B" if unit == 1 else f"{size / unit:.1f} {name}"


def _disk_faults(planned: Bill) -> Iterator[str]:
    """What does not fit, on each file system that the experiment's files lie on."""
    machine = planned.machine
    kinds: dict[bool, Terms] = {False: {}, True: {}}
    for file in planned.files:
        # Those of no experiment, such as wheels, lie beside it.
        inside = file.path.is_relative_to(planned.folder)
        top = file.path.relative_to(planned.folder).parts[0] if inside else ""
        there = top in machine.scratch_holds
        kinds[there] = merged(kinds[there], {file.kind: file.missing})
    for there, folder, free in (
        (False, machine.folder, machine.disk),
        (True, machine.scratch, machine.scratch_disk),
    ):
        sizes, needed = kinds[there], sum(kinds[there].values())
        if needed <= free:
            continue
        kind = max(sizes, key=lambda name: sizes[name])
        key, mend = DISK[kind]
        also = f", of {amount(needed)} in all" if sizes[kind] < 0.9 * needed else ""
        yield (
            f"{key}: the {kind} need {amount(sizes[kind])} more on disk{also}, {folder} has "
            f"{amount(free)} free; {mend}"
        )


def _mend(line: Line, term: str) -> tuple[str, str] | None:
    """The key to lower for a term of memory, and how; None if there is none."""
    known = OF_TERMS | (OF_PRETRAIN if line.stage == "pretrain" else {})
    keys = [factor for factor in term.split(" * ") if "." in factor]
    if term not in known and keys:
        return keys[0], f"lower {keys[0]}"
    found = known.get(term) or known.get(term.split(" * ")[0])
    return found and (found[0].format(c=line.which), found[1].format(c=line.which))


def _memory_faults(planned: Bill, where: str, free: int | None) -> Iterator[str]:
    if not free:
        return
    said = set()
    place = "this machine" if where == "host" else planned.machine.device_name
    kind = "memory" if where == "host" else "memory on the device"
    for line in planned.lines:
        terms: Terms = getattr(line.job, where)
        needed = sum(terms.values())
        if not line.left or needed <= free:
            continue
        known = {term: _mend(line, term) for term in sorted(terms, key=lambda t: -terms[t])}
        mends = {term: mend for term, mend in known.items() if mend is not None}
        most = list(mends)
        key, mend = mends[most[0]]
        if mend in said:
            continue
        said.add(mend)
        others = dict.fromkeys(mends[t][1] for t in most[1:3] if terms[t] > 0.1 * needed)
        also = "".join(f", or {other}" for other in others if other != mend)
        what = ", ".join(f"{name} {amount(terms[name])}" for name in most[:2])
        yield (
            f"{key}: {line.name} needs {amount(needed)} of {kind} ({what}), {place} has "
            f"{amount(free)}; {mend}{also}"
        )


def too_large(planned: Bill, memory: bool = True) -> list[str]:
    """What of a bill does not fit, one line each with the numbers and the keys to lower.

    Parameters
    ----------
    memory : whether memory counts beside the disk.
    """
    faults = list(_disk_faults(planned))
    if memory:
        faults += _memory_faults(planned, "host", planned.machine.host)
        faults += _memory_faults(planned, "device", planned.machine.device)
    return faults


def faults(settings: Settings, results: str | Path, memory: bool = True) -> list[str]:
    """What of an experiment cannot fit here: disk, memory of the host, memory of the device."""
    return too_large(bill(settings, results), memory)

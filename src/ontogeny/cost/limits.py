"""Which parts of a bill do not fit, and which key to lower."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from ontogeny.cost.bill import Bill, Line, bill
from ontogeny.cost.terms import Terms, merged
from ontogeny.settings import Settings

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))

MENDS = Path(__file__).with_name("mends.yaml")


@cache
def mends(of: str) -> dict[str, tuple[str, str]]:
    """The key with most effect on each term of memory or kind of file, and what to do with it."""
    known = yaml.safe_load(MENDS.read_text(encoding="utf-8"))[of]
    return {
        term: (each["key"], each.get("mend") or f"lower {each['key']}")
        for each in known
        for term in each["of"]
    }


def amount(size: float) -> str:
    """A number of bytes as text, in a suitable unit."""
    unit, name = next(((u, n) for u, n in UNITS if size >= u), (1, "B"))
    return f"{size:.0f} B" if unit == 1 else f"{size / unit:.1f} {name}"


def _disk_faults(planned: Bill) -> Iterator[str]:
    """Faults for the file systems whose free space is too small for the experiment's files."""
    machine = planned.machine
    kinds: dict[bool, Terms] = {False: {}, True: {}}
    for file in planned.files:
        # Files that belong to no experiment, such as wheels, are outside the folder.
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
        key, mend = mends("disk")[kind]
        also = f", of {amount(needed)} in all" if sizes[kind] < 0.9 * needed else ""
        yield (
            f"{key}: the {kind} need {amount(sizes[kind])} more on disk{also}, {folder} has "
            f"{amount(free)} free; {mend}"
        )


def _mend(line: Line, term: str) -> tuple[str, str] | None:
    """The key to lower for a term of memory, and how; None if there is none."""
    known = mends("memory") | (mends(line.stage) if line.stage in ("pretrain", "stream") else {})
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
    """What does not fit of a bill, one line each with the numbers and the keys to lower.

    Parameters
    ----------
    memory : whether to check memory as well as disk.
    """
    faults = list(_disk_faults(planned))
    if memory:
        faults += _memory_faults(planned, "host", planned.machine.host)
        faults += _memory_faults(planned, "device", planned.machine.device)
    return faults


def faults(settings: Settings, results: str | Path, memory: bool = True) -> list[str]:
    """What of an experiment cannot fit here: disk, host memory, device memory."""
    return too_large(bill(settings, results), memory)

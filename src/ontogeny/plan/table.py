"""The bill as text."""

from __future__ import annotations

from ontogeny.plan.bill import Bill, hours
from ontogeny.plan.cost import Terms
from ontogeny.plan.limits import amount, too_large


def show(b: Bill, all_terms: bool = False) -> str:
    """The bill as a table, then totals against what there is, then what does not fit.

    Parameters
    ----------
    all_terms : also each stage's terms of memory.
    """
    gpu = b.machine.device != 0
    head = ["stage", "jobs", "disk", "host memory"]
    head += ["device memory"] if gpu else []
    head += ["FLOPs"] + (["hours"] if b.rates else [])
    lines = [head]
    for stage in b.stages:
        bound = "≤ " if stage.at_most else ""
        jobs = f"{stage.left}" if stage.left == stage.jobs else f"{stage.left} of {stage.jobs}"
        row = [stage.name, jobs, _cell(sum(f.missing for f in stage.files), bound)]
        memory = [stage.job.host] + ([stage.job.device] if gpu else [])
        row += [_cell(sum(m.values()) if stage.left else 0, bound) for m in memory]
        flops = sum(w.flops for w in stage.work)
        row.append(f"{bound}{flops:.1e}" if flops else "–")
        if b.rates:
            row.append(_hours(hours(stage, b.rates)))
        lines.append(row)
    widths = [max(len(row[i]) for row in lines) for i in range(len(head))]
    said = []
    for row in lines:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        said.append("  ".join(cells).rstrip())
    said.insert(1, "  ".join("-" * width for width in widths))
    paid = sum(f.there for f in b.files)
    there, free = b.machine.folder, amount(b.machine.disk)
    said += [
        "",
        f"disk    {amount(b.disk)} more at a time, {amount(b.stays)} stay in the end, "
        f"{amount(paid)} are there; {there} has {free} free",
        f"memory  {amount(b.host)} in the largest job; this machine has {amount(b.machine.host)}",
    ]
    if gpu:
        has = "its memory is not known"
        if b.machine.device is not None:
            has = f"has {amount(b.machine.device)}"
        name = b.machine.device_name
        said.append(f"device  {amount(b.device)} in the largest job; {name}, {has}")
    if b.rates:
        said.append(f"time    {_hours(b.hours)} h, one job after the other; {b.rates.how}")
    if any(stage.at_most for stage in b.stages):
        said.append("≤       a bound until the stages before it have run")
    said += [f"note    {note}" for note in b.notes]
    if all_terms:
        for stage in b.stages:
            for where in ("host", "device"):
                terms: Terms = getattr(stage.job, where)
                if terms and stage.left:
                    parts = sorted(terms.items(), key=lambda item: -item[1])
                    told = ", ".join(f"{n} {amount(v)}" for n, v in parts if v >= 5e7)
                    said.append(f"{stage.name}, {where}: {told}")
    wrong = too_large(b)
    said += ["", *(f"does not fit: {line}" for line in wrong)] if wrong else ["", "It fits."]
    return "\n".join(said)


def _cell(size: float, bound: str) -> str:
    return bound + amount(size) if size else "–"


def _hours(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"

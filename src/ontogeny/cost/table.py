"""The bill as text."""

from __future__ import annotations

from ontogeny.cost.bill import Bill, Line
from ontogeny.cost.limits import amount, too_large
from ontogeny.cost.terms import Terms


def show(planned: Bill, all_terms: bool = False) -> str:
    """The bill as a table, then totals next to what the machine has, then what does not fit.

    Parameters
    ----------
    all_terms : whether to list each stage's terms of memory.
    """
    machine, rates = planned.machine, planned.rates
    gpu = machine.device != 0
    head = ["stage", "jobs", "disk", "host memory", *["device memory"] * gpu, "FLOPs"]
    head += ["time"] if rates else []
    rows = [head, *(_row(line, planned, gpu) for line in planned.lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    text = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        text.append("  ".join(cells).rstrip())
    text.insert(1, "  ".join("-" * width for width in widths))
    there = sum(file.there for file in planned.files)
    stays = sum(file.size for file in planned.files if file.stays)
    text += [
        "",
        f"disk    {amount(planned.disk)} more at a time, {amount(stays)} stay in the end, "
        f"{amount(there)} are there; {machine.folder} has {amount(machine.disk)} free",
        f"memory  {amount(planned.host)} in the largest job; this machine has "
        f"{amount(machine.host)}",
    ]
    if gpu:
        has = f"has {amount(machine.device)}" if machine.device else "its memory is not known"
        text.append(
            f"device  {amount(planned.device)} in the largest job; {machine.device_name}, {has}"
        )
    if rates:
        text.append(f"time    {duration(planned.hours)}, one job after the other; {rates.how}")
    if any(line.at_most for line in planned.lines):
        text.append("≤       a bound until the stages before it have run")
    text += [f"note    {note}" for note in planned.notes]
    for line in planned.lines if all_terms else ():
        for where in ("host", "device"):
            terms: Terms = getattr(line.job, where)
            if terms and line.left:
                largest = sorted(terms.items(), key=lambda item: -item[1])
                shown = ", ".join(f"{name} {amount(size)}" for name, size in largest if size >= 5e7)
                text.append(f"{line.name}, {where}: {shown}")
    faults = too_large(planned)
    text += ["", *(f"does not fit: {fault}" for fault in faults)] if faults else ["", "It fits."]
    return "\n".join(text)


def _row(line: Line, planned: Bill, gpu: bool) -> list[str]:
    bound = "≤ " if line.at_most else ""
    memory = [line.job.host, *[line.job.device] * gpu]
    sizes: list[float] = [sum(file.missing for file in line.files)]
    sizes += [sum(terms.values()) if line.left else 0 for terms in memory]
    flops = sum(work.flops for work in line.work)
    row = [line.name, f"{line.left}" + (f" of {line.jobs}" if line.left != line.jobs else "")]
    row += [bound + amount(size) if size else "–" for size in sizes]
    row.append(f"{bound}{flops:.1e}" if flops else "–")
    return row + ([duration(line.hours(planned.rates))] if planned.rates else [])


def duration(hours: float) -> str:
    """A time as text, in a suitable unit."""
    if hours >= 2:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"

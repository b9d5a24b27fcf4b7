"""When each job of a run was running, from Snakemake's benchmark files (docs/cost.md).

The files hold each job's seconds. A job ended when its file was written.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from ontogeny.figures import style
from ontogeny.files import InputError, read_job

PARTS = {  # parts of the workflow: stages and colour
    "data": ({"fetch", "corpus", "tokenizer"}, style.CASES[1]),
    "snapshots": ({"pretrain", "training_log", "snapshot"}, style.CASES[3]),
    "activations": ({"extract", "stack", "token_table", "basis", "project"}, style.CASES[5]),
    "crosscoders": ({"train", "fidelity"}, style.CASES[0]),
    "features": ({"features", "phases", "baselines", "compare"}, style.CASES[2]),
    "analyses": (set(), style.CASES[4]),
    "report": ({"figures", "atlas", "numbers", "summary"}, "#7F7F7F"),
}
PAUSE = 60.0  # seconds to which longer pauses between jobs, of interrupted runs, are cut


def part_of(stage: str) -> str:
    """The part of the workflow that a stage belongs to; stages of no other part are analyses."""
    return next((part for part, (stages, _) in PARTS.items() if stage in stages), "analyses")


def jobs(folder: Path) -> pd.DataFrame:
    """The jobs of a run, ordered by start.

    Parameters
    ----------
    folder : benchmark files, STAGE.tsv or STAGE/JOB.tsv.

    Returns
    -------
    stage, job, part; start : seconds since the start of the first job, with pauses cut to at most
    PAUSE; seconds; cpu_seconds : processor time, NaN for jobs too short to be measured.

    Raises
    ------
    InputError : there is no such file.
    """
    rows = []
    for path in sorted(folder.glob("**/*.tsv")):
        name = path.relative_to(folder).with_suffix("")
        row = read_job(path)
        rows.append(
            {
                "stage": name.parts[0],
                "job": "/".join(name.parts[1:]),
                "part": part_of(name.parts[0]),
                "start": path.stat().st_mtime - row["s"],
                "seconds": row["s"],
                "cpu_seconds": row["cpu_time"],
            }
        )
    if not rows:
        raise InputError(f"{folder}: no benchmark files; run the experiment first")
    table = pd.DataFrame(rows).sort_values(["start", "stage", "job"], ignore_index=True)
    ends = (table["start"] + table["seconds"]).cummax().shift(fill_value=table["start"][0])
    table["start"] -= table["start"][0] + (table["start"] - ends - PAUSE).clip(lower=0).cumsum()
    return table


def lanes(table: pd.DataFrame) -> np.ndarray:
    """A lane for each job, from 0: the first free one, so that jobs in a lane never overlap."""
    free: list[float] = []
    chosen = []
    for start, seconds in zip(table["start"], table["seconds"], strict=True):
        lane = next((n for n, end in enumerate(free) if end <= start), len(free))
        free[lane : lane + 1] = [start + seconds]
        chosen.append(lane)
    return np.array(chosen)


def at_work(table: pd.DataFrame) -> dict[int, float]:
    """Seconds during which a given number of jobs ran in parallel, by that number."""
    ends = table["start"] + table["seconds"]
    times = np.r_[table["start"], ends]
    order = np.argsort(times, kind="stable")
    change = np.r_[np.ones(len(table)), -np.ones(len(table))][order]
    spans = np.diff(times[order])
    counts = np.cumsum(change)[:-1].astype(int)
    return {int(n): float(spans[counts == n].sum()) for n in np.unique(counts)}


def draw(benchmarks: Path, output: Path) -> str:
    """A bar for each job over the run's minutes, one row per stage. Returns the figure's title.

    Parameters
    ----------
    benchmarks : folder of Snakemake's benchmark files. output : path without ending. Its CSV is
        the table of `jobs`.

    Raises
    ------
    InputError : the run has left no benchmark files.
    """
    table = jobs(benchmarks)
    stages = list(dict.fromkeys(table["stage"]))
    total, spans = (table["start"] + table["seconds"]).max(), at_work(table)
    most = table.groupby("stage")["seconds"].sum()
    text = (
        f"{len(table)} jobs in {total / 60:.1f} min; for {spans.get(1, 0.0) / 60:.1f} min only "
        f"one job was running; {most.idxmax()} took longest"
    )
    with style.paper():
        figure = style.new_figure(180, 25 + 4.2 * len(stages))
        axis = figure.subplots()
        for row, stage in enumerate(stages):
            own = table[table["stage"] == stage]
            lane = lanes(own)
            height = 0.8 / (lane.max() + 1)
            axis.barh(
                row - 0.4 + height * lane,
                own["seconds"] / 60,
                height,
                own["start"] / 60,
                align="edge",
                color=PARTS[part_of(stage)][1],
                edgecolor="white",
                linewidth=0.2,
            )
        axis.set(yticks=range(len(stages)), xlabel="minutes since the start", xlim=(0, None))
        axis.set_yticklabels(stages)
        axis.set_ylim(len(stages) - 0.4, -0.6)
        axis.set_title(text, loc="left")
        there = [part for part in PARTS if part in set(table["part"])]
        handles = [Patch(color=PARTS[part][1], label=part) for part in there]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        style.save(figure, table, output)
    return text

"""How many features a task needs, and how many are enough."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ontogeny.analyses.circuits.figure_abilities import TASKS
from ontogeny.figures import style

TOP = 10  # number of top features for which matches are counted
NOTE_LETTERS = 95  # letters in a line across the figure
LINES: dict[str, Any] = {"absolute": "-", "random": (0, (4, 1.5)), "matched": ":"}
GROUPS = {
    "absolute": "k most important features",
    "random": "k random features that differ",
    "matched": "k others that differ as often",
}
COLOURS = {"sufficiency": style.CASES[0], "necessity": style.CASES[1]}
SIDES = {
    "sufficiency": "these clean, the rest corrupted",
    "necessity": "these corrupted, the rest clean",
}
RESTORED = ["restored", "restored_low", "restored_high"]

FEW = 10  # number of features in the title


def draw(features: Path, behaviour: Path, attribution: Path, curves: Path, output: Path) -> None:
    """Share of the logit difference that remains, against the number of features ablated or kept.

    Parameters
    ----------
    features : the features table; feature, alive, matched, matched_cosine.
    behaviour : task, step, done, accuracy, accuracy_low, accuracy_high.
    attribution : task, feature, step, attribution.
    curves : task, snapshot_index, step, side, group, k, error, restored with its interval.
    output : path without ending. Its CSV has task, snapshot_index, step, done, top_matched (how
        many of the 10 features with the largest |attribution| are matched), side, group, k, error,
        restored, restored_low, restored_high; a snapshot that cannot do a task has one row, with
        only `done`.

    References
    ----------
    docs/method.md 7 and 8.
    """
    living = style.read_living(features)
    columns = ["task", "step", "done", "accuracy", "accuracy_low", "accuracy_high"]
    tasks = style.read(behaviour, columns)[columns]
    attributed = style.read(attribution, ["task", "feature", "step", "attribution"])
    columns = ["task", "snapshot_index", "step", "side", "group", "k", "error", *RESTORED]
    every = style.read(curves, columns)[columns]
    every = every[every["group"].isin(list(GROUPS))]
    snapshots = every[["snapshot_index", "step"]].drop_duplicates().sort_values("step")
    every = every.merge(tasks[["task", "step", "done"]], on=["task", "step"])
    names = list(dict.fromkeys(every["task"]))
    shown = [name for name in names if every.loc[every["task"] == name, "done"].any()]
    known = set(living.loc[living["matched"], "feature"])
    drawn: list[pd.DataFrame] = []
    with style.paper():
        figure = style.new_figure(180, 32 + 38 * max(1, len(shown)))
        grid = figure.subplots(
            max(1, len(shown)), max(1, len(snapshots)), squeeze=False, sharey=True, sharex="row"
        )
        for name in names:
            for column, (number, step) in enumerate(snapshots.itertuples(index=False)):
                points = every[(every["task"] == name) & (every["step"] == step)]
                done = bool(points["done"].iloc[0])
                top = attributed[(attributed["task"] == name) & (attributed["step"] == step)]
                top = top[top["feature"] >= 0]
                order = np.argsort(-top["attribution"].abs().to_numpy(), kind="stable")[:TOP]
                count = int(top["feature"].iloc[order].isin(known).sum())
                about = {"task": name, "snapshot_index": number, "step": step, "done": done}
                drawn.append(points.assign(top_matched=count) if done else pd.DataFrame([about]))
                if name not in shown:
                    continue
                axis = grid[shown.index(name), column]
                if done:
                    _curves(axis, points, last=name == shown[-1])
                    note = f"top {len(order)}: {count} matched"
                    axis.text(
                        0.02, 0.04, note, fontsize=5.8, ha="left", transform=axis.transAxes,
                        color="0.3",
                    )  # fmt: skip
                else:
                    task = tasks[(tasks["task"] == name) & (tasks["step"] == step)].iloc[0]
                    interval = f"{task['accuracy_low']:.2f}–{task['accuracy_high']:.2f}"
                    axis.text(
                        0.5, 0.5, f"not done\naccuracy {task['accuracy']:.2f}\n({interval})",
                        ha="center", va="center", color="0.4", transform=axis.transAxes,
                    )  # fmt: skip
                    axis.tick_params(bottom=False, left=False, labelbottom=False)
                if shown.index(name) == 0:
                    axis.set_title(f"snapshot {number}, step {step:,}", loc="center")
        for row, name in enumerate(shown):
            label = textwrap.fill(TASKS.get(name, name), 22)
            grid[row, 0].set_ylabel(f"{label}\nshare of difference")
        if not shown:
            for axis in grid[0]:
                style.empty(axis, "no task is done")
        _legend(figure)
        absent = [TASKS.get(name, name) for name in names if name not in shown]
        note = style.matched_note(living)
        if absent:
            said = "No better than chance at any of these snapshots: " + "; ".join(absent)
            note += "\n" + textwrap.fill(said, NOTE_LETTERS)
        figure.suptitle(note, x=0.01, ha="left")
        names_of = ["task", "snapshot_index", "step", "done", "top_matched", *columns[3:]]
        drawn = drawn or [pd.DataFrame(columns=names_of)]
        table = pd.concat(drawn, ignore_index=True).reindex(columns=names_of)
        kinds = {"k": "Int64", "top_matched": "Int64", "snapshot_index": "Int64"}
        style.save(figure, table.astype(kinds), output, finding)


def finding(table: pd.DataFrame) -> str:
    """In how many tasks ten features restore half of the difference, and more than random ones."""
    own = table[
        (table["side"] == "sufficiency") & ~table["error"].astype(bool) & (table["k"] <= FEW)
    ]
    own = own[own["step"] == table["step"].max()]
    best = own.sort_values("k").groupby(["task", "group"]).last()
    tasks = [str(task) for task in dict.fromkeys(own["task"])]
    half, apart = [], []
    for task in tasks:
        key, random = best.loc[(task, "absolute")], best.loc[(task, "random")]
        half += [task] if key["restored"] >= 0.5 else []
        apart += [task] if key["restored_low"] > random["restored_high"] else []
    if not tasks:
        return "The model can do none of the tasks at the last snapshot"
    beside = (
        f"and more than {FEW} random features do in {len(apart)}"
        if apart
        else "in none more than random features do"
    )
    return (
        f"At the last snapshot the {FEW} most important features restore half of the answer in "
        f"{len(half)} of {len(tasks)} tasks, {beside}"
    )


def _curves(axis: Axes, points: pd.DataFrame, last: bool) -> None:
    """All curves of a task at a snapshot; the points with the error node are drawn apart."""
    axis.axhline(0, color="0.8", linewidth=0.5, zorder=0)
    axis.axhline(1, color="0.8", linewidth=0.5, zorder=0)
    most = int(points["k"].max())
    beyond = np.expm1(np.log1p(most) * 1.09)
    for side, colour in COLOURS.items():
        for group, line in LINES.items():
            curve = points[(points["side"] == side) & (points["group"] == group)].sort_values("k")
            error, plain = curve[curve["error"]], curve[~curve["error"]]
            band = (plain["restored_low"], plain["restored_high"])
            best = group == "absolute"
            axis.fill_between(
                plain["k"], *band, color=colour, alpha=0.16 if best else 0.08, linewidth=0
            )
            axis.plot(
                plain["k"], plain["restored"], color=colour, linestyle=line,
                linewidth=1.3 if best else 0.9, marker="o" if best else "", markersize=2,
            )  # fmt: skip
            if best:
                axis.plot(
                    [beyond] * len(error), error["restored"], "D", color=colour, markersize=3,
                    markerfacecolor="white", clip_on=False, zorder=5,
                )  # fmt: skip
    axis.set_xscale("function", functions=(np.log1p, np.expm1))
    axis.set_xlim(-0.15, np.expm1(np.log1p(most) * 1.11))
    ticks = [0, *(10**i for i in range(int(np.log10(max(1, most))) + 1))]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axis.set_ylim(-0.35, 1.35)
    axis.set_yticks([0, 0.5, 1])
    if last:
        axis.set_xlabel("features k (log axis)")


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=COLOURS[side], linewidth=3, label=text) for side, text in SIDES.items()
    ]
    handles += [
        Line2D([], [], color="0.3", linestyle=line, label=GROUPS[group])
        for group, line in LINES.items()
    ]
    handles.append(
        Line2D([], [], color="0.3", marker="D", markerfacecolor="white", linestyle="",
               markersize=3, label="all features and the error node")
    )  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3)

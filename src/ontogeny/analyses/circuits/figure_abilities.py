"""A task's key features during training, with the model's performance on the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ontogeny.figures import style
from ontogeny.figures.glyphs import drawable

TOP = 5
DASHES: Any = (0, (4, 1.2))  # for unmatched features
ERROR = -1  # the error node's number in the table of attributions
SHADES = tuple(shade for shade in style.CASES if shade != style.COLOURS["held_out"])
TASKS = {
    "agreement_simple": "agreement, simple",
    "agreement_across_pp": "agreement across a prepositional phrase",
    "agreement_within_rc": "agreement within a relative clause",
    "agreement_across_rc": "agreement across a relative clause",
    "indirect_object": "indirect object",
    "induction": "induction, random tokens",
    "copying": "copying, half a context apart",
    "copied_name": "copying the rest of a name",
    "recalled_argument": "recalling an argument",
    "self_attribute": "an attribute of self",
    "import_alias": "import alias",
    "closing_bracket": "closing bracket",
    "indentation": "indentation after a colon",
}
SERIES = {
    name: {name: "value", f"{name}_low": "low", f"{name}_high": "high"}
    for name in ("accuracy", "logit_difference")
}


def draw(
    features: Path,
    strengths: Path,
    behaviour: Path,
    attribution: Path,
    named: Path | None,
    output: Path,
) -> None:
    """Accuracy of every task and the strength of its five key features, by snapshot.

    Key features have the largest |attribution| at the last snapshot among those that differ from 0.
    A task that the last snapshot cannot do (its accuracy's interval reaches one half) has none.

    Parameters
    ----------
    features : the features table; feature, alive, matched, matched_cosine.
    strengths : the strengths table; feature, snapshot_index, step, normalised_strength.
    behaviour : task, snapshot_index, step, done, accuracy and logit_difference with their
        intervals.
    attribution : task, feature, step, attribution, standard_error, told.
    named : feature, name; None if features have no names.
    output : path without ending. Its CSV has task, done (at the last snapshot), panel ('task',
        'strength', 'attribution'), series (accuracy, logit_difference, a feature's number,
        'other features' or 'all features', 'error'), matched, snapshot_index, step, value, low,
        high; the attribution with 95% intervals over pairs, in nats.

    References
    ----------
    docs/method.md 7 and 8.
    """
    living = style.read_living(features)
    columns = ["feature", "snapshot_index", "step", "normalised_strength"]
    every = style.read(strengths, columns)[columns]
    columns = ["task", "snapshot_index", "step", "done"]
    columns += [column for series in SERIES.values() for column in series]
    tasks = style.read(behaviour, columns)[columns]
    columns = ["task", "feature", "step", "attribution", "standard_error", "told"]
    attributed = style.read(attribution, columns)[columns]
    called = style.names_of(named)
    order = list(dict.fromkeys(tasks["task"]))
    snapshots = tasks[["snapshot_index", "step"]].drop_duplicates().sort_values("step")
    numbers, steps = list(snapshots["snapshot_index"]), list(snapshots["step"])
    known = set(living.loc[living["matched"], "feature"])
    done = tasks.sort_values("step").groupby("task")["done"].last()
    drawn: list[pd.DataFrame] = []
    colours: dict[int, str] = {}
    with style.paper():
        heights = [1.0 if done[name] else 0.62 for name in order] or [1.0]
        figure = style.new_figure(180, 24 + 31 * sum(heights))
        grid = figure.subplots(
            len(heights), 3, squeeze=False, width_ratios=[1, 1, 0.55], height_ratios=heights
        )
        for axis in () if order else grid[0]:
            style.empty(axis, "the last snapshot does no task")
        for row, name in enumerate(order):
            task = tasks[tasks["task"] == name].sort_values("step")
            last = task.iloc[-1]
            here = attributed[(attributed["task"] == name) & (attributed["step"] == last["step"])]
            key = _key(here) if last["done"] else here.iloc[:0]
            shades = _shades(key["feature"], colours)
            curves = {i: every[every["feature"] == i].sort_values("step") for i in key["feature"]}
            lowest = row == len(order) - 1
            for kind, axis in zip(style.KINDS, grid[row], strict=False):
                _task(axis, task, right=kind == "linear")
                for colour, (feature, curve) in zip(shades, curves.items(), strict=True):
                    line = "-" if feature in known else DASHES
                    points = (curve["step"], curve["normalised_strength"])
                    axis.plot(*points, color=colour, linestyle=line, linewidth=0.9)
                style.step_axis(axis, max(steps), kind, labels=lowest)
                style.mark_snapshots(axis, numbers, steps, kind, labels=False)
            grid[row, 0].set_ylabel("accuracy;\nstrength / peak" if len(key) else "accuracy")
            accuracy = (
                f"{last['accuracy']:.2f} ({last['accuracy_low']:.2f}–{last['accuracy_high']:.2f})"
            )
            verdict = "" if last["done"] else "not done: "
            style.title(
                grid[row, 0], chr(ord("a") + row),
                f"{TASKS.get(name, name)}: {verdict}accuracy {accuracy} at step {last['step']:,}",
            )  # fmt: skip
            if last["done"]:
                drawn.append(_bars(grid[row, 2], here, key, shades, known, called, lowest))
            else:
                below = last["accuracy_high"] < 0.5
                verdict = "worse than chance" if below else "no different from chance"
                style.empty(grid[row, 2], f"{verdict}:\nno features shown")
            for series, columns_of in SERIES.items():
                drawn.append(_numbers(task, columns_of, name, "task", series))
            for feature, curve in curves.items():
                strength = {"normalised_strength": "value"}
                drawn.append(_numbers(curve, strength, name, "strength", str(feature)))
        matched = len(set(colours) & known)
        note = f"{matched} of {len(colours)} key features matched; " if colours else ""
        figure.suptitle(note + style.matched_note(living), x=0.01, ha="left")
        figure.legend(handles=_legend(), loc="outside lower center", ncols=3)
        table = pd.concat(drawn or [pd.DataFrame(columns=["task", "series"])], ignore_index=True)
        table["done"] = table["task"].map(done)
        of_matched = table["series"].isin([str(feature) for feature in known])
        table["matched"] = of_matched.where(table["series"].str.isdigit())
        names_of = ["task", "done", "panel", "series", "matched", "snapshot_index", "step"]
        table = table.reindex(columns=[*names_of, "value", "low", "high"])
        style.save(
            figure, table.astype({"snapshot_index": "Int64", "step": "Int64"}), output, finding
        )


def finding(table: pd.DataFrame) -> str:
    """In how many tasks features contribute more than the error node, and how many can be done."""
    tasks = table["task"].dropna().unique()
    bars = table[table["panel"] == "attribution"]
    more = shown = 0
    for _, own in bars.groupby("task"):
        error = own.loc[own["series"] == "error", "value"]
        if len(error):
            shown += 1
            more += own.loc[own["series"] != "error", "value"].sum() > error.iloc[0]
    if not shown:
        return f"At the last snapshot the model does none of {len(tasks)} tasks better than chance"
    return (
        f"The model can do {shown} of {len(tasks)} tasks; in {more} of them the features account "
        "for more of the answer than the crosscoder's error does"
    )


def _key(here: pd.DataFrame) -> pd.DataFrame:
    """The features of the largest |attribution|, the largest first."""
    sure = here[(here["feature"] != ERROR) & here["told"]]
    order = np.argsort(-sure["attribution"].abs().to_numpy(), kind="stable")
    return sure.iloc[order[:TOP]]


def _shades(features: pd.Series[int], colours: dict[int, str]) -> list[str]:
    """Colours of a task's key features; each feature keeps its colour over tasks if it is free."""
    taken: list[str] = []
    for feature in features:
        free = [shade for shade in SHADES if shade not in taken]
        rare = min(free, key=list(colours.values()).count)
        own = colours.setdefault(feature, rare)
        taken.append(own if own in free else rare)
    return taken


def _task(axis: Axes, task: pd.DataFrame, right: bool) -> None:
    """Accuracy on the left axis, logit difference on a second one."""
    step, difference = task["step"], task["logit_difference"]
    axis.axhline(0.5, color="0.75", linewidth=0.6, zorder=0)
    band = (task["accuracy_low"], task["accuracy_high"])
    axis.fill_between(step, *band, color="0.85", linewidth=0, zorder=0)
    axis.plot(step, task["accuracy"], color="black", linewidth=1.5)
    axis.set_ylim(0, 1.04)
    axis.set_yticks([0, 0.5, 1])
    twin = axis.twinx()
    twin.plot(step, difference, color="0.35", linestyle=":", linewidth=1.1)
    most = max(1.0, *difference.abs())
    twin.set_ylim(-1.1 * most, 1.1 * most)
    twin.spines["right"].set_visible(True)
    twin.tick_params(axis="y", labelright=right, colors="0.35", labelsize=6)
    if right:
        twin.set_ylabel("logit diff.", color="0.35")


def _bars(
    axis: Axes,
    here: pd.DataFrame,
    key: pd.DataFrame,
    shades: list[str],
    known: set[int],
    called: dict[int, str],
    labels: bool,
) -> pd.DataFrame:
    """Attributions of the key features, of all others together, and of the error node."""
    rest = here[(here["feature"] != ERROR) & ~here["feature"].isin(key["feature"])]
    error = here[here["feature"] == ERROR].iloc[0]
    names = [*key["feature"].astype(str), "other features" if len(key) else "all features", "error"]
    values = np.array([*key["attribution"], rest["attribution"].sum(), error["attribution"]])
    spread = 1.96 * np.array([*key["standard_error"], np.nan, error["standard_error"]])
    colours = [*shades, "0.6", "0.6"]
    filled = [feature in known for feature in key["feature"]] + [True, True]
    y = -np.arange(len(names))
    axis.barh(
        y, values, 0.72, edgecolor=colours, linewidth=0.8,
        color=[c if f else "white" for c, f in zip(colours, filled, strict=True)],
    )  # fmt: skip
    axis.errorbar(values, y, xerr=spread, fmt="none", ecolor="black", elinewidth=0.6)
    axis.axvline(0, color="black", linewidth=0.5)
    texts = [f"{i}: {drawable(called[i])}" if i in called else str(i) for i in key["feature"]]
    axis.set_yticks(y, [*texts, *names[len(texts) :]], fontsize=5.8, parse_math=False)
    axis.tick_params(axis="x", labelsize=6)
    if not len(key):
        axis.set_ylim(-len(names) - 0.4, 0.5)  # a separate row, which no bar or interval crosses
        text, across = "no single feature\ndiffers from 0", axis.get_yaxis_transform()
        axis.text(0.5, -len(names), text, color="0.4", fontsize=6, transform=across,
                  ha="center", va="center")  # fmt: skip
    if labels:
        axis.set_xlabel("attribution (nats)")
    return pd.DataFrame(
        {
            "task": here["task"].iloc[0],
            "panel": "attribution",
            "series": names,
            "step": here["step"].iloc[0],
            "value": values,
            "low": values - spread,
            "high": values + spread,
        }
    )


def _numbers(
    table: pd.DataFrame, columns: dict[str, str], task: str, panel: str, series: str
) -> pd.DataFrame:
    """The numbers of a curve, from columns listed by their names in the figure's table."""
    curve = table[["snapshot_index", "step", *columns]].rename(columns=columns)
    return curve.assign(task=task, panel=panel, series=series)


def _legend() -> list[object]:
    return [
        Line2D([], [], color="black", linewidth=1.5, label="accuracy, 95% over pairs"),
        Line2D([], [], color="0.75", linewidth=0.6, label="no difference seen"),
        Line2D([], [], color="0.35", linestyle=":", label="logit difference"),
        Line2D([], [], color="0.4", linewidth=0.9, label="key feature, matched"),
        Line2D([], [], color="0.4", linewidth=0.9, linestyle=DASHES, label="not matched"),
        Patch(facecolor="white", edgecolor="0.4", label="not matched (bar)"),
    ]

"""When features of each kind appear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style

KINDS = {"current_token": "o", "previous_token": "s", "induction": "D", "context": "^"}


def draw(features: Path, strengths: Path, kinds: Path, control: Path, output: Path) -> None:
    """Mean normalised strength by kind, onsets by kind, and how many there are.

    Parameters
    ----------
    features : the features table; feature, alive, matched, matched_cosine, onset_step.
    strengths : the strengths table; feature, snapshot_index, step, normalised_strength.
    kinds : the kinds table; feature, kind.
    control : the control's table; kind, features, permuted.
    output : path without ending. Its CSV has panel ('strength', 'onset', 'count'), kind, group
        ('matched', 'unmatched'; of 'count' 'all', 'matched', 'permuted'), snapshot_index, step,
        low, high, value: for 'strength' the mean and quartiles; for 'onset' the share of the kind's
        features with onset at or before the step; for 'count' the number of features.

    References
    ----------
    docs/method.md 6.
    """
    living = style.read_living(features, ["onset_step"])
    known = style.read(kinds, ["feature", "kind"])
    living = living.merge(known[["feature", "kind"]], on="feature", how="left")
    living["kind"] = living["kind"].fillna("none")
    columns = ["feature", "snapshot_index", "step", "normalised_strength"]
    every = style.read(strengths, columns)[columns].merge(
        living[["feature", "kind", "matched"]], on="feature"
    )
    twin = style.read(control, ["kind", "features", "permuted"]).set_index("kind")
    snapshots = every[["snapshot_index", "step"]].drop_duplicates().sort_values("step")
    numbers, steps = list(snapshots["snapshot_index"]), list(snapshots["step"])
    drawn: list[pd.DataFrame] = []
    with style.paper():
        figure = style.new_figure(180, 125)
        grid = figure.subplots(2, 2)
        for letter, kind, axis in zip("ab", style.KINDS, grid[0], strict=True):
            for name, marker in KINDS.items():
                some = every[every["kind"] == name]
                count = some["feature"].nunique()
                if not count:
                    continue
                colour = style.COLOURS[name]
                label = f"{name.replace('_', '-').replace('-token', ' token')} ({count:,})"
                axis.plot([], [], marker + "-", color=colour, label=label)
                for group, part in style.by_match(some).items():
                    if part.empty:
                        continue
                    curve = _curve(part, name, group)
                    if group == "matched":
                        axis.fill_between(
                            curve["step"], curve["low"], curve["high"], color=colour, alpha=0.13,
                            linewidth=0,
                        )  # fmt: skip
                    axis.plot(
                        curve["step"],
                        curve["value"],
                        marker + "-" if group == "matched" else ":",
                        color=colour,
                        alpha=1 if group == "matched" else 0.6,
                    )
                    if kind == "log":
                        drawn.append(curve)
            axis.set_ylim(0, 1.02)
            style.step_axis(axis, max(steps), kind)
            style.mark_snapshots(axis, numbers, steps, kind)
            style.title(axis, letter, "")
        grid[0, 0].set_ylabel("strength / peak strength")
        _onsets(grid[1, 0], living, max(steps), drawn)
        _counts(grid[1, 1], living, twin, drawn)
        style.title(grid[1, 0], "c", "onsets")
        style.title(grid[1, 1], "d", "features of each kind")
        figure.suptitle(style.matched_note(living), x=0.01, ha="left")
        handles = grid[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4)
        names = ["panel", "kind", "group", "snapshot_index", "step", "low", "high", "value"]
        table = pd.concat(drawn, ignore_index=True).reindex(columns=names)
        style.save(figure, table.astype({"snapshot_index": "Int64"}), output)


def _curve(some: pd.DataFrame, kind: str, group: str) -> pd.DataFrame:
    """Mean and quartiles over features, a row a snapshot."""
    by_step = some.groupby(["snapshot_index", "step"])["normalised_strength"]
    low, high = by_step.quantile(0.25), by_step.quantile(0.75)
    found = pd.DataFrame({"value": by_step.mean(), "low": low, "high": high}).reset_index()
    return found.sort_values("step").assign(panel="strength", kind=kind, group=group)


def _onsets(axis: Axes, living: pd.DataFrame, last: float, drawn: list[pd.DataFrame]) -> None:
    """Share of each kind's features that have appeared, over steps."""
    for name in KINDS:
        some = living[living["kind"] == name]
        for group, part in style.by_match(some).items():
            if part.empty:
                continue
            x = np.sort(part["onset_step"].to_numpy())
            steps = np.r_[0, x, last]
            share = np.r_[0, np.arange(1, len(x) + 1), len(x)] / len(x)
            look: dict[str, Any] = {"linestyle": "-"}
            if group == "unmatched":
                look = {"linestyle": ":", "alpha": 0.6}
            axis.step(steps, share, where="post", color=style.COLOURS[name], **look)
            drawn.append(
                pd.DataFrame({"step": steps, "value": share}).assign(
                    panel="onset", kind=name, group=group
                )
            )
    style.step_axis(axis, last, "log")
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("onset, training step (log axis)")
    axis.set_ylabel("share of the kind's features")


def _counts(
    axis: Axes, living: pd.DataFrame, twin: pd.DataFrame, drawn: list[pd.DataFrame]
) -> None:
    """Numbers of features, matched ones, and of the permuted twin."""
    names = [*KINDS, "none"]
    bars = {
        "all": [int((living["kind"] == n).sum()) for n in names],
        "matched": [int(((living["kind"] == n) & living["matched"]).sum()) for n in names],
        "permuted": [int(twin["permuted"].get(n, 0)) for n in names],
    }
    colours = {"all": style.COLOURS["all"], "matched": style.COLOURS["matched"], "permuted": "none"}
    labels = {"all": "all living", "matched": "matched", "permuted": "activations permuted"}
    for i, (group, counts) in enumerate(bars.items()):
        place = np.arange(len(names)) + 0.27 * (i - 1)
        edge = "0.3" if group == "permuted" else "none"
        shown = axis.bar(
            place, counts, 0.25, color=colours[group], edgecolor=edge, linewidth=0.7,
            label=labels[group],
        )  # fmt: skip
        axis.bar_label(shown, [f"{count:,}" for count in counts], fontsize=5.5, padding=1)
        drawn.append(
            pd.DataFrame({"kind": names, "value": counts}).assign(panel="count", group=group)
        )
    axis.set_xticks(range(len(names)), [n.replace("_", "\n") for n in names])
    axis.set_yscale("symlog", linthresh=1)
    axis.set_ylim(0, 600 * max(1, *bars["all"], *bars["permuted"]))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("features (log axis)")
    axis.legend(loc="upper right")

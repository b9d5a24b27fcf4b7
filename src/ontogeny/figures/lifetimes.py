"""How long features live, when they appear, and their classes (docs/method.md 4 and 8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from ontogeny.figures import style

CLASSES = {"initialisation": "o", "emergent": "s", "transient": "D"}
LIFETIME_BINS = np.linspace(0, 1, 17)
ONSET_BINS = 20


def draw(features: Path, classes: Path, output: Path) -> None:
    """Lifetimes by class, onsets of emergent features, and how the classes depend on the threshold.

    Transient features are drawn separately; 'kept' features are still present at the last snapshot.

    Parameters
    ----------
    output : path without ending. Its CSV has panel ('lifetime', 'onset_log', 'onset_linear',
        'onset_cumulative', 'sweep'), group ('matched' and 'unmatched', or 'living' with one seed;
        'all' for 'sweep'), class, low, high, value: the count in the bin [low, high), with the last
        bin closed; for 'onset_cumulative' the number of features with an onset of at most low; for
        'sweep' the count at threshold low.
    """
    living = style.read_living(features, ["lifetime", "onset_step", *CLASSES])
    sweep = style.read(classes, ["presence", *CLASSES])
    emergent = living[living["emergent"]]
    one = style.of_one_seed(living)
    groups = {"living": living} if one else style.by_match(living)
    of_emergent = {"living": emergent} if one else style.by_match(emergent)
    onsets = {group: own["onset_step"].to_numpy() for group, own in of_emergent.items()}
    last = max(1.0, emergent["onset_step"].max()) if len(emergent) else 1.0
    drawn: list[pd.DataFrame] = []
    with style.paper():
        figure = style.new_figure(180, 125)
        above = [*groups, "sweep"] if len(groups) > 1 else [*groups, *groups, "sweep"]
        layout: list[Any] = [above, [*style.KINDS, "cumulative"]]
        panels = figure.subplot_mosaic(layout)
        for group, own in groups.items():
            _lifetimes(panels[group], own, group, drawn)
        _sweep(panels["sweep"], sweep, drawn)
        for kind in style.KINDS:
            _onsets(panels[kind], onsets, last, kind, drawn)
        _cumulative(panels["cumulative"], onsets, last, drawn)
        texts = [f"{group} ({len(own):,})" for group, own in groups.items()]
        texts += ["classes by threshold, all living"]
        texts += [f"onsets, emergent ({len(emergent):,})"] * 2 + ["onsets up to a step"]
        for letter, axis, text in zip("abcdef", panels.values(), texts, strict=False):
            style.title(axis, letter, text)
        figure.suptitle(style.matched_note(living), x=0.01, ha="left")
        style.save(figure, pd.concat(drawn, ignore_index=True), output, finding)


def finding(table: pd.DataFrame) -> str:
    """Which kind of life most features have, and whether unmatched ones have it as often."""
    sums = (
        table[table["panel"] == "lifetime"].groupby(["group", "class"], sort=False)["value"].sum()
    )
    lives = {
        "initialisation": "are present from the first snapshot to the last",
        "emergent": "emerge and stay",
        "transient": "fade before the end",
    }
    present = [group for group in ("matched", "unmatched", "living") if group in sums]
    group = next((each for each in present if sums[each].sum()), present[-1])
    own = sums[group]
    total = int(own.sum())
    if not total:
        return ""
    most = str(own.idxmax())
    said = f"{own[most] / total:.0%} of the {total:,} {group} features {lives[most]}"
    other = sums.get("unmatched", pd.Series(dtype=float))
    rest = int(other.sum())
    if group != "matched" or not rest:
        return said
    pairs = [[own[most], total - own[most]], [other[most], rest - other[most]]]
    apart = stats.fisher_exact(np.array(pairs, dtype=int)).pvalue < 0.05
    how = "more often" if own[most] / total > other[most] / rest else "less often"
    return (
        f"{said}, {how if apart else 'no more or less often'} "
        f"than unmatched ones ({other[most] / rest:.0%})"
    )


def _rows(
    panel: str, group: str, name: str, low: np.ndarray, high: np.ndarray, value: np.ndarray
) -> pd.DataFrame:
    columns = {"panel": panel, "group": group, "class": name, "low": low, "high": high}
    return pd.DataFrame(columns | {"value": value})


def _lifetimes(axis: Axes, living: pd.DataFrame, group: str, drawn: list[pd.DataFrame]) -> None:
    """Stacked histogram: features kept to the end by class, transient ones on top."""
    low, high = LIFETIME_BINS[:-1], LIFETIME_BINS[1:]
    below = np.zeros(len(low))
    for name, own in style.by_class(living).items():
        counts, _ = np.histogram(own["lifetime"], LIFETIME_BINS)
        kept = "" if name == "transient" else ", kept"
        axis.bar(
            low,
            counts,
            np.diff(LIFETIME_BINS),
            bottom=below,
            align="edge",
            color=style.COLOURS[name],
            edgecolor="white",
            linewidth=0.3,
            label=f"{name}{kept} ({len(own):,})",
        )
        drawn.append(_rows("lifetime", group, name, low, high, counts))
        below = below + counts
    axis.set(xlim=(0, 1), ylim=(0, max(1.0, 1.3 * below.max())))
    axis.set(xlabel="lifetime (share of snapshots)", ylabel="features")
    axis.legend(loc="upper left")


def _sweep(axis: Axes, sweep: pd.DataFrame, drawn: list[pd.DataFrame]) -> None:
    presence = sweep["presence"].to_numpy()
    for name, marker in CLASSES.items():
        counts = sweep[name].to_numpy()
        axis.plot(presence, counts, color=style.COLOURS[name], marker=marker, label=name)
        drawn.append(_rows("sweep", "all", name, presence, presence, counts))
    axis.set_ylim(bottom=0)
    axis.set(xticks=presence, xlabel="presence threshold", ylabel="features")
    axis.legend(loc="best")


def _onsets(
    axis: Axes,
    onsets: dict[str, np.ndarray],
    last: float,
    kind: style.Kind,
    drawn: list[pd.DataFrame],
) -> None:
    """Histograms of the emergent features' onsets, in bins of equal width on the axis."""
    edges = np.linspace(0, last, ONSET_BINS + 1)
    if kind == "log":
        edges = np.expm1(np.linspace(0, np.log1p(last), ONSET_BINS + 1))
    for group, steps in onsets.items():
        colour = style.COLOURS["unmatched" if group == "unmatched" else "matched"]
        fill, over = group != "unmatched", 1 if group != "unmatched" else 2
        look: dict[str, Any] = {"fill": fill, "color": colour, "zorder": over}
        counts = style.histogram(axis, steps, edges, label=group, **look)
        drawn.append(_rows(f"onset_{kind}", group, "emergent", edges[:-1], edges[1:], counts))
    style.step_axis(axis, last, kind)
    label = "onset, training step" + (" (log axis)" if kind == "log" else "")
    axis.set(xlabel=label, ylabel="features")
    axis.locator_params(axis="y", integer=True)
    axis.legend(loc="upper left" if kind == "log" else "upper right")


def _cumulative(
    axis: Axes, onsets: dict[str, np.ndarray], last: float, drawn: list[pd.DataFrame]
) -> None:
    for group, steps in onsets.items():
        x = np.r_[0, np.sort(steps), last]
        counts = np.r_[0 : len(steps) + 1, len(steps)]
        colour = style.COLOURS["unmatched" if group == "unmatched" else "matched"]
        axis.step(x, counts, where="post", color=colour, label=f"{group} ({len(steps):,})")
        drawn.append(_rows("onset_cumulative", group, "emergent", x, x, counts))
    style.step_axis(axis, last, "log")
    axis.set_ylim(bottom=0)
    axis.set(xlabel="onset, training step (log axis)", ylabel="emergent features")
    axis.legend(loc="upper left")

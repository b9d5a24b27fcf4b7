"""When features of each kind appear, how many there are, and what they lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from ontogeny.analyses.kinds.settings import Kinds
from ontogeny.figures import style
from ontogeny.settings import Settings

LEAST_FEATURES = 5  # least number of features of a kind whose median onset the title mentions
SHOWN = (-0.3, 1.05)  # range of losses; those beyond are drawn at the edge


def draw(
    settings: Settings,
    features: Path,
    strengths: Path,
    kinds: Path,
    control: Path,
    output: Path,
) -> None:
    """Strength by kind, onsets, counts, and what features lose when tokens are replaced.

    Parameters
    ----------
    features : the features table; feature, alive, matched, matched_cosine, onset_step.
    strengths : the strengths table; feature, snapshot_index, step, normalised_strength.
    kinds : the kinds table; feature, kind and the losses.
    control : the control's table; kind, rule, permuted.
    output : path without ending. Its CSV has panel, kind, group, feature, snapshot_index, step,
        low, high, value and against. By panel the value is
            strength : mean over features, with quartiles; group 'matched' or 'unmatched'
            onset : share of the kind's features with an onset up to the step; groups likewise
            count : number of features; group 'all', 'matched', 'rule' or 'permuted'
            induction : a feature's loss when the tokens after earlier copies are replaced, against
                that of its control
            context : loss when the previous token is replaced, against that when all before it is

    References
    ----------
    docs/method.md 6.
    """
    section = settings.section(Kinds)
    living = style.read_living(features, ["onset_step"])
    losses = [f"{name}_loss" for name in ("induction", "previous_token", "context")]
    known = style.read(kinds, ["feature", "kind", "induction_control", *losses])
    names = ["feature", "kind", "induction_control", *losses]
    living = living.merge(known[names], on="feature", how="left").fillna({"kind": "none"})
    columns = ["feature", "snapshot_index", "step", "normalised_strength"]
    every = style.read(strengths, columns)[columns].merge(
        living[["feature", "kind", "matched"]], on="feature"
    )
    twin = style.read(control, ["kind", "rule", "permuted"]).set_index("kind")
    snapshots = every[["snapshot_index", "step"]].drop_duplicates().sort_values("step")
    numbers, steps = list(snapshots["snapshot_index"]), list(snapshots["step"])
    drawn: list[pd.DataFrame] = []
    with style.paper():
        figure = style.new_figure(180, 190)
        grid = figure.subplots(3, 2)
        for letter, kind, axis in zip("ab", style.KINDS, grid[0], strict=True):
            curves = _strengths(axis, every)
            if kind == "log":
                drawn += curves
            axis.set_ylim(0, 1.02)
            style.step_axis(axis, max(steps), kind)
            style.mark_snapshots(axis, numbers, steps, kind)
            style.title(axis, letter, "")
        grid[0, 0].set_ylabel("strength / peak strength")
        _onsets(grid[1, 0], living, max(steps), drawn)
        _counts(grid[1, 1], living, twin, drawn)
        _losses(grid[2, 0], living, "induction", "induction_control", "induction_loss", drawn)
        _losses(grid[2, 1], living, "context", "context_loss", "previous_token_loss", drawn)
        lines: dict[str, Any] = {"color": "0.4", "linewidth": 0.6, "linestyle": "--", "zorder": 0}
        for axis in grid[2]:
            axis.axhline(section.loss, **lines)
        grid[2, 0].axvline(section.control, **lines)
        grid[2, 1].axvline(section.loss, **lines)
        grid[2, 0].set(
            xlabel="loss under the control: as many other tokens replaced",
            ylabel="loss, earlier continuation replaced",
        )
        grid[2, 1].set(
            xlabel="loss, all before the previous token replaced",
            ylabel="loss, previous token replaced",
        )
        style.title(grid[1, 0], "c", "onsets")
        style.title(grid[1, 1], "d", "features of each kind")
        style.title(grid[2, 0], "e", "induction, one dot per feature")
        style.title(grid[2, 1], "f", "previous token and context")
        figure.suptitle(style.matched_note(living), x=0.01, ha="left")
        handles = grid[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=5)
        names = ["panel", "kind", "group", "feature", "snapshot_index", "step", "low", "high"]
        table = pd.concat(drawn, ignore_index=True).reindex(columns=[*names, "value", "against"])
        table = table.astype({"snapshot_index": "Int64", "feature": "Int64"})
        style.save(figure, table, output, finding)


def finding(table: pd.DataFrame) -> str:
    """Which kinds appear first and last, if their onsets differ (Mann-Whitney)."""
    own = table[(table["panel"] == "onset") & (table["group"] == "matched")]
    # The first and last row of a curve are the ends of the axis.
    onsets = {str(kind): part["step"].to_numpy()[1:-1] for kind, part in own.groupby("kind")}
    onsets = {kind: steps for kind, steps in onsets.items() if len(steps) >= LEAST_FEATURES}
    medians = pd.Series({kind: np.median(steps) for kind, steps in onsets.items()}).sort_values()
    if len(medians) < 2:
        return "Fewer than two kinds have enough matched features to compare their onsets"

    def like(kind: str) -> list[str]:
        """Kinds whose onsets do not differ from those of the given kind."""
        alike = (
            stats.mannwhitneyu(onsets[kind], onsets[other]).pvalue >= 0.05
            for other in medians.index
        )
        return [
            _words(str(other)) for other, same in zip(medians.index, alike, strict=True) if same
        ]

    first, last = like(str(medians.index[0])), like(str(medians.index[-1]))
    if set(first) & set(last):
        return "The onsets of the first and the last kind of feature cannot be distinguished"
    between = ", ".join(f"{_words(str(kind))} {at:,.0f}" for kind, at in medians.items())
    return (
        f"{_joined(first).capitalize()} features appear first, {_joined(last)} features last "
        f"(median onsets of matched features: {between})"
    )


def _joined(kinds: list[str]) -> str:
    """The kinds as an attribute before a noun: "context and current-token"."""
    return " and ".join(kind.replace(" ", "-") for kind in kinds)


def _words(kind: str) -> str:
    return kind.replace("_", "-").replace("-token", " token")


def _strengths(axis: Axes, every: pd.DataFrame) -> list[pd.DataFrame]:
    """Mean strength of each kind over steps, with quartiles of the matched features."""
    curves = []
    for name, marker in style.MARKERS.items():
        of_kind = every[every["kind"] == name]
        count = of_kind["feature"].nunique()
        if not count:
            continue
        colour = style.COLOURS[name]
        axis.plot([], [], marker + "-", color=colour, label=f"{_words(name)} ({count:,})")
        for group, part in style.by_match(of_kind).items():
            if part.empty:
                continue
            curve = _curve(part, name, group)
            look: dict[str, Any] = {"linestyle": ":", "alpha": 0.6}
            if group == "matched":
                band = (curve["step"], curve["low"], curve["high"])
                axis.fill_between(*band, color=colour, alpha=0.13, linewidth=0)
                look = {"linestyle": "-", "marker": marker}
            axis.plot(curve["step"], curve["value"], color=colour, **look)
            curves.append(curve)
    return curves


def _curve(some: pd.DataFrame, kind: str, group: str) -> pd.DataFrame:
    """Mean and quartiles over features, one row per snapshot."""
    by_step = some.groupby(["snapshot_index", "step"])["normalised_strength"]
    low, high = by_step.quantile(0.25), by_step.quantile(0.75)
    found = pd.DataFrame({"value": by_step.mean(), "low": low, "high": high}).reset_index()
    return found.sort_values("step").assign(panel="strength", kind=kind, group=group)


def _onsets(axis: Axes, living: pd.DataFrame, last: float, drawn: list[pd.DataFrame]) -> None:
    """Share of each kind's features that have appeared, over steps."""
    for name in style.MARKERS:
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
    """Numbers of features and of matched ones, and how many the rules label, also when permuted."""
    names = [*style.MARKERS, "none"]
    of_kind = {name: living[living["kind"] == name] for name in names}
    counts = {
        "all": [len(part) for part in of_kind.values()],
        "matched": [int(part["matched"].sum()) for part in of_kind.values()],
        "rule": [int(twin["rule"].get(name, 0)) for name in names],
        "permuted": [int(twin["permuted"].get(name, 0)) for name in names],
    }
    colours = [style.COLOURS.get(name, style.COLOURS["unsure"]) for name in names]
    at = np.arange(len(names))
    looks: dict[str, dict[str, Any]] = {
        "all": {"color": colours, "alpha": 0.4},
        "matched": {"color": colours},
        "rule": {"color": "none", "edgecolor": "0.2", "linewidth": 0.7},
        "permuted": {"color": "0.2", "linewidth": 0},
    }
    labels = {"all": "living (full: matched)", "rule": "by rule", "permuted": "by rule, permuted"}
    for group, own in counts.items():
        place = {"all": -0.2, "matched": -0.2, "rule": 0.14, "permuted": 0.36}[group]
        width = 0.12 if group == "permuted" else 0.32
        bars = axis.bar(at + place, own, width, label=labels.get(group), **looks[group])
        if group in ("all", "rule"):
            axis.bar_label(bars, [f"{count:,}" for count in own], fontsize=5.5, padding=1)
        drawn.append(pd.DataFrame({"kind": names, "value": own}).assign(panel="count", group=group))
    axis.set_xticks(
        at, ["none or\nuntested" if name == "none" else name.replace("_", "\n") for name in names]
    )
    axis.set_yscale("symlog", linthresh=1)
    axis.set_ylim(0, 60 * max(1, *counts["all"], *counts["permuted"], *counts["rule"]))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("features (log axis)")
    axis.legend(loc="upper right")


def _losses(
    axis: Axes, living: pd.DataFrame, panel: str, x: str, y: str, drawn: list[pd.DataFrame]
) -> None:
    """One dot per feature with both losses known, coloured by its kind."""
    known = living[living[x].notna() & living[y].notna()]
    for name in ["none", *style.MARKERS]:
        part = known[known["kind"] == name]
        axis.scatter(
            part[x].clip(*SHOWN), part[y].clip(*SHOWN), s=6, linewidths=0, alpha=0.7,
            marker=style.MARKERS.get(name, "o"),
            color=style.COLOURS.get(name, style.COLOURS["unsure"]),
        )  # fmt: skip
        own = {"kind": name, "feature": part["feature"], "value": part[y], "against": part[x]}
        drawn.append(pd.DataFrame(own).assign(panel=panel))
    if known.empty:
        style.empty(axis, "too few positions with replaced tokens")
    axis.set(xlim=SHOWN, ylim=SHOWN)

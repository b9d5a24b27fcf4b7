"""The timeline: when the loss, heads, copying and kinds of feature change, and in which order."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style

HEADS = {
    "previous_token_head": ("previous token", style.COLOURS["previous_token"], "s-"),
    "fixed_distance_head": ("fixed distance, half a block", style.COLOURS["matched"], "o-"),
    "duplicate_token_head": ("duplicate token", style.COLOURS["copying_near"], "v-"),
    "induction_head": ("induction, random tokens", style.COLOURS["induction"], "D-"),
    "induction_head_text": ("induction, text", style.COLOURS["copying"], "^-"),
}
GAINS = {"copying_gain": ("text", "-"), "copying_gain_random": ("random tokens", "--")}
SHADES = ("#9ECAE1", "#4292C6", "#08519C", "#A65628", "#000000")  # of distances, ascending
LEVELS = ("unigram", "bigram")


def draw(
    table: Path,
    curves: Path,
    phases: Path,
    levels: Path,
    features: Path | None,
    strengths: Path | None,
    kinds: Path | None,
    output: Path,
) -> None:
    """Scores of the best heads, copying gains, loss, features by kind, and onsets of all of these.

    Parameters
    ----------
    table, curves : CSV of the induction stage. phases, levels : CSV and JSON of the phases stage.
    features, strengths, kinds : Parquet of the features' histories and kinds, either all or none;
        without them the panels say so.
    output : path without ending. Its CSV has panel ('heads', 'gain', 'loss', 'features', 'onset'),
        event, detail, group, snapshot_index, step, value, low, high: attention above chance, nats,
        or normalised strength at each step; the n-gram levels have no step; for 'onset' value is
        the onset's step with its interval, empty if the event never forms.

    References
    ----------
    docs/method.md 5 and 6.
    """
    columns = ["event", "detail", "snapshot_index", "step", "value", "low", "high"]
    every = _read(curves, columns)
    order = _read(
        table, ["event", "detail", "group", "count", "verdict", "onset_step", "low", "high"]
    )
    losses = style.read(phases, ["snapshot_index", "step", "loss"]).rename(
        columns={"loss": "value"}
    )
    level = style.read_json(levels, [f"{name}_cross_entropy" for name in LEVELS])
    numbers, steps = style.snapshots(every)
    drawn: list[pd.DataFrame] = []
    by_kind, note = pd.DataFrame(), ""
    if features is not None and strengths is not None and kinds is not None:
        by_kind, note = _by_kind(features, strengths, kinds)
    with style.paper():
        figure = style.new_figure(180, 265)
        grid = figure.subplots(5, 2, gridspec_kw={"height_ratios": [1, 1, 1, 1, 1.5]})
        for column, kind in enumerate(style.KINDS):
            _heads(grid[0, column], every, drawn)
            _gains(grid[1, column], every, drawn)
            _losses(grid[2, column], losses, level, drawn)
            _features(grid[3, column], by_kind, drawn)
            for row, letter in enumerate("aceg"):
                axis = grid[row, column]
                style.title(axis, chr(ord(letter) + column), "")
                if axis.lines:
                    style.step_axis(axis, max(steps), kind)
                    style.mark_snapshots(axis, numbers, steps, kind, labels=row == 0)
            _onsets(grid[4, column], order, column == 0, max(steps), drawn)
            style.step_axis(grid[4, column], max(steps), kind)
            grid[4, column].set_xlabel(f"onset, {grid[4, column].get_xlabel()}")
            style.title(grid[4, column], "ij"[column], "")
        labels = ["attention above chance", "copying gain (nats)", "held-out loss (nats)"]
        labels.append("strength / peak strength")
        for row, label in enumerate(labels):
            if grid[row, 0].lines:
                grid[row, 0].set_ylabel(label)
                corner = "lower left" if row == 2 else "upper left"
                grid[row, 0].legend(loc=corner, fontsize=5.5, ncols=2 if row == 3 else 1)
        if note:
            figure.suptitle(note, x=0.01, ha="left")
        names = ["panel", "event", "detail", "group", "snapshot_index", "step", "value"]
        numbers_drawn = pd.concat(drawn, ignore_index=True).reindex(columns=[*names, "low", "high"])
        numbers_drawn = numbers_drawn.drop_duplicates()  # both axes show the same numbers
        style.save(figure, numbers_drawn.astype({"snapshot_index": "Int64"}), output, finding)


def finding(table: pd.DataFrame) -> str:
    """Whether induction features appear before or after the induction head, if the intervals
    decide it."""
    onsets = table[table["panel"] == "onset"]
    own = onsets[(onsets["event"] == "features") & (onsets["detail"] == "induction")]
    own = own[own["group"] == "all"].dropna(subset=["value"])
    head = onsets[onsets["event"] == "induction_head_text"].dropna(subset=["value"])
    if own.empty or head.empty:
        absent = [text for text, part in (("features", own), ("head", head)) if part.empty]
        return f"No induction {' and no induction '.join(absent)} with a known onset"
    features, low, high = own[["value", "low", "high"]].iloc[0]
    at, since, until = head[["value", "low", "high"]].iloc[0]
    how = "before" if high < since else "after" if low > until else "when"
    if how == "when":
        return (
            f"Induction features (median onset at step {features:,.0f}) and the induction head "
            f"({at:,.0f}) appear at times that cannot be distinguished"
        )
    return (
        f"Induction features appear {how} the induction head: median onset at step "
        f"{features:,.0f}, the head's at {at:,.0f}"
    )


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """A table whose column `detail` is text: '1.2' is a head, not a number."""
    table = style.read(path, columns, dtype={"detail": str, "group": str})
    return table.fillna({"detail": "", "group": ""})


def _band(axis: Axes, curve: pd.DataFrame, line: str, colour: str, label: str | None) -> None:
    """A curve over steps with its interval."""
    band = (curve["low"], curve["high"])
    axis.fill_between(curve["step"], *band, color=colour, alpha=0.15, linewidth=0)
    axis.plot(curve["step"], curve["value"], line, color=colour, label=label)


def _heads(axis: Axes, every: pd.DataFrame, drawn: list[pd.DataFrame]) -> None:
    """The best head for each score."""
    for event, (name, colour, line) in HEADS.items():
        curve = every[every["event"] == event]
        if curve.empty:
            continue
        _band(axis, curve, line, colour, f"{name}, head {curve['detail'].iloc[0]}")
        drawn.append(curve.assign(panel="heads"))
    if axis.lines:
        axis.axhline(0, color="0.6", linewidth=0.6, zorder=0)
        axis.set_ylim(-0.05, 1.02)
    else:
        style.empty(axis, "this model gives no attention weights")


def _gains(axis: Axes, every: pd.DataFrame, drawn: list[pd.DataFrame]) -> None:
    """The gain at each distance, on text and on random tokens."""
    for event, (name, line) in GAINS.items():
        gains = every[(every["event"] == event) & (every["detail"] != "")]
        distances = sorted(gains["detail"].unique(), key=int)
        for distance, colour in zip(distances, SHADES, strict=False):
            curve = gains[gains["detail"] == distance]
            label = f"{distance} tokens apart" if event == "copying_gain" else None
            _band(axis, curve, line, colour, label)
            drawn.append(curve.assign(panel="gain"))
        axis.plot([], [], line, color="0.3", label=name)
    axis.axhline(0, color="0.6", linewidth=0.6, zorder=0)


def _losses(
    axis: Axes, losses: pd.DataFrame, level: dict[str, float], drawn: list[pd.DataFrame]
) -> None:
    """The loss, with the n-gram levels."""
    axis.plot(losses["step"], losses["value"], ".-", color=style.COLOURS["held_out"], label="model")
    drawn.append(losses[["snapshot_index", "step", "value"]].assign(panel="loss", event="model"))
    for name in LEVELS:
        value, colour = level[f"{name}_cross_entropy"], style.COLOURS[name]
        axis.axhline(value, color=colour, linewidth=0.8, linestyle=":", label=name)
        drawn.append(pd.DataFrame({"panel": ["loss"], "event": name, "value": value}))


def _by_kind(features: Path, strengths: Path, kinds: Path) -> tuple[pd.DataFrame, str]:
    """Mean strength with quartiles by kind, group and snapshot; a note on the matched share."""
    living = style.read_living(features)
    known = style.read(kinds, ["feature", "kind"])[["feature", "kind"]]
    note = style.matched_note(living)
    living = living[["feature", "matched"]].merge(known, on="feature")
    columns = ["feature", "snapshot_index", "step", "normalised_strength"]
    every = style.read(strengths, columns)[columns].merge(living, on="feature")
    every = every[every["kind"].isin(list(style.MARKERS))]
    parts = []
    for group, chosen in (("all", every), ("matched", every[every["matched"]])):
        by = chosen.groupby(["kind", "snapshot_index", "step"])["normalised_strength"]
        summed = {"value": by.mean(), "low": by.quantile(0.25), "high": by.quantile(0.75)}
        curve = pd.DataFrame({**summed, "features": by.size()})
        parts.append(curve.reset_index().assign(group=group))
    table = pd.concat(parts, ignore_index=True).rename(columns={"kind": "detail"})
    return table, note


def _features(axis: Axes, by_kind: pd.DataFrame, drawn: list[pd.DataFrame]) -> None:
    """Mean strength of each kind's features; matched features are dashed."""
    if by_kind.empty:
        style.empty(axis, "no kinds of feature in this experiment's analyses")
        return
    for name, marker in style.MARKERS.items():
        colour = style.COLOURS[name]
        curves = by_kind[by_kind["detail"] == name].sort_values("step")
        full, matched = (curves[curves["group"] == group] for group in ("all", "matched"))
        if full.empty:
            continue
        label = f"{name.replace('_', ' ')} ({full['features'].iloc[0]:,})"
        _band(axis, full, marker + "-", colour, label)
        axis.plot(matched["step"], matched["value"], "--", color=colour)
        drawn.append(curves.assign(panel="features", event="features"))
    axis.set_ylim(0, 1.3)  # room for the legend
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])


def _shown(order: pd.DataFrame) -> list[tuple[str, str, pd.Series]]:
    """Label, colour and row of everything in the panel of onsets, from top to bottom."""
    shown: list[tuple[str, str, pd.Series]] = []
    for _, row in order.iterrows():
        event, detail = str(row["event"]), str(row["detail"])
        if event in HEADS:
            name, colour, _ = HEADS[event]
            shown.append((f"head: {name.replace(', half a block', '')}", colour, row))
        elif event == "features":
            of = "" if row["group"] == "all" else ", matched"
            words = detail.replace("_", "-").removesuffix("-token")
            label = f"features: {words}{of} ({int(row['count']):,})"
            shown.append((label, style.COLOURS[detail], row))
        elif event.startswith("loss_"):
            name = event.removeprefix("loss_")
            shown.append((f"loss below the {name} model's", style.COLOURS[name], row))
        elif detail == "":  # single distances are only in the table
            shown.append((f"copying gain: {GAINS[event][0]}", "0.25", row))
    return shown


def _onsets(
    axis: Axes, order: pd.DataFrame, labels: bool, last: float, drawn: list[pd.DataFrame]
) -> None:
    """Each onset with its interval, the earliest on top; events that never form have a note."""
    shown = _shown(order)
    for y, (_, colour, row) in enumerate(shown):
        if row["verdict"] == "forms":
            if pd.notna(row.get("quartile_low")):
                ends = [row["quartile_low"], row["quartile_high"]]
                axis.plot(ends, [y, y], color=colour, linewidth=3.5, alpha=0.3)
            axis.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.2)
            axis.plot(row["onset_step"], y, "o", color=colour, markersize=3.5)
        else:
            axis.text(
                0.985, y, "none", color="0.55", fontsize=5.5, ha="right", va="center",
                transform=axis.get_yaxis_transform(),
            )  # fmt: skip
    axis.set_ylim(len(shown) - 0.4, -0.6)
    names = [label for label, _, _ in shown] if labels else []
    axis.set_yticks(range(len(shown)), names or [""] * len(shown), fontsize=5.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", color="0.92", linewidth=0.5)
    rows = pd.DataFrame([row for _, _, row in shown]).rename(columns={"onset_step": "value"})
    drawn.append(rows[["event", "detail", "group", "value", "low", "high"]].assign(panel="onset"))

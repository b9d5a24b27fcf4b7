"""How far births and deaths can be trusted, with all crosscoders next to each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ontogeny.analyses.trust.settings import AROUND
from ontogeny.figures import style
from ontogeny.files import read_table

COLOURS = style.CASES
MARKERS = "osD^vP*"
MEASURES = {
    "silent_births": "silent\nbirths",
    "silent_deaths": "silent\ndeaths",
    "relays": "features\nin relays",
}
SAID = {
    "silent_births": "of births are silent",
    "silent_deaths": "of deaths are silent",
    "relays": "are in relays",
}
TITLES = {
    "share": "what cannot be trusted",
    "birth": "read-out around births",
    "death": "read-out around deaths",
    "strength": "median strength, quartiles",
    "signs": "norm and gate agree",
    "relay": "the closest relay",
}
LEAST = 5  # least number of events for a median


def draw(
    names: list[str],
    strengths: list[Path],
    events: list[Path],
    relays: list[Path],
    by_snapshot: list[Path],
    verdicts: list[Path],
    output: Path,
) -> None:
    """Shares that are doubtful, readability around births and deaths, both signs, and a relay.

    Parameters
    ----------
    names : of the crosscoders. All other arguments have one table per crosscoder.
    output : path without ending. Its CSV has crosscoder, panel ('share', 'birth', 'death',
        'strength', 'signs', 'relay'), group, x, low, value, high.
    """
    drawn: list[pd.DataFrame] = []
    shares = [read_table(path) for path in verdicts]
    snapshots = [read_table(path) for path in by_snapshot]
    found = pd.concat([read_table(path).assign(crosscoder=i) for i, path in enumerate(relays)])
    # Both signs exist if each snapshot has a gate, a relay if one was found.
    below = ["strength"]
    below += ["signs"] * any(table["signs_agree"].notna().any() for table in snapshots)
    below += ["relay"] * bool(len(found))
    with style.paper():
        figure = style.new_figure(180, 118)
        rows = (["share", "birth", "death"], below)
        axes = figure.subplot_mosaic([np.repeat(row, 6 // len(row)).tolist() for row in rows])
        for i, name in enumerate(names):
            _shares(axes["share"], shares[i], len(names), name, i, drawn)
            table = read_table(events[i])
            for event in ("birth", "death"):
                _around(axes[event], table, event, name, i, drawn)
            _snapshots(axes["strength"], axes.get("signs"), snapshots[i], name, i, drawn)
        if "relay" in axes:
            _relay(axes["relay"], names, strengths, found, drawn)
        axes["share"].set_xticks(range(len(MEASURES)), list(MEASURES.values()))
        axes["share"].set(ylim=(0, None), ylabel="share (filled: frequent; hollow: all)")
        for event in ("birth", "death"):
            axes[event].axvline(-0.5, color="0.6", linewidth=0.6)
            axes[event].set(xlim=(AROUND[0] - 0.3, AROUND[-1] + 0.3), ylim=(-0.05, 1.05))
            axes[event].set_xlabel(f"snapshots after the {event}")
        axes["birth"].set_ylabel("R² / best in life")
        last = max(table["step"].max() for table in snapshots)
        for panel, label in (("strength", "normalised strength"), ("signs", "share of features")):
            if panel in axes:
                style.step_axis(axes[panel], last, "log")
                axes[panel].set(ylim=(0, 1.02), ylabel=label)
        for letter, (panel, axis) in zip("abcdef", axes.items(), strict=False):
            style.title(axis, letter, TITLES[panel])
        style.legend(figure, [axes["share"]], loc="outside lower center", ncols=min(len(names), 6))
        order = ["crosscoder", "panel", "group", "x", "low", "value", "high"]
        style.save(
            figure, pd.concat(drawn, ignore_index=True).reindex(columns=order), output, finding
        )


def finding(table: pd.DataFrame) -> str:
    """How many births and deaths of frequent features cannot be trusted."""
    own = table[(table["panel"] == "share") & (table["group"] == "frequent")]
    own = (
        own[own["crosscoder"] == own["crosscoder"].iloc[0]].dropna(subset=["value"])
        if len(own)
        else own
    )
    if own.empty:
        return "No feature is frequent enough to judge its births and deaths"
    parts = [
        f"{row['value']:.1%} [{row['low']:.1%}, {row['high']:.1%}] {SAID[str(row['x'])]}"
        for row in own.to_dict("records")
    ]
    return f"Among frequent features of {own['crosscoder'].iloc[0]}, {', '.join(parts)}"


def _shares(
    axis: Axes, verdicts: pd.DataFrame, count: int, name: str, i: int, drawn: list[pd.DataFrame]
) -> None:
    shift = (i - (count - 1) / 2) * 0.7 / max(1, count)
    for group, fill, aside in (("frequent", True, -0.04), ("all", False, 0.04)):
        own = verdicts[verdicts["group"] == group].set_index("measure").loc[list(MEASURES)]
        x = np.arange(len(MEASURES)) + shift + aside
        ends = [own["value"] - own["low"], own["high"] - own["value"]]
        axis.errorbar(
            x,
            own["value"],
            np.clip(np.array(ends), 0, None),
            fmt=MARKERS[i % len(MARKERS)],
            color=COLOURS[i % len(COLOURS)],
            markerfacecolor=None if fill else "white",
            markersize=4,
            elinewidth=0.8,
            label=name if fill else None,
        )
        columns = own.reset_index()[["low", "value", "high"]]
        drawn.append(columns.assign(crosscoder=name, panel="share", group=group, x=list(MEASURES)))


def _around(
    axis: Axes, events: pd.DataFrame, event: str, name: str, i: int, drawn: list[pd.DataFrame]
) -> None:
    """Median and quartiles of R² relative to the best in life, by distance from the event."""
    own = events[(events["event"] == event) & events["judged"]]
    rows = []
    for offset in AROUND:
        values = (own[f"r2_{offset:+d}"] / own["best"]).dropna()
        if len(values) >= LEAST:
            rows.append((offset, *np.quantile(values, [0.25, 0.5, 0.75])))
    table = pd.DataFrame(rows, columns=["x", "low", "value", "high"], dtype=float)
    colour = COLOURS[i % len(COLOURS)]
    axis.fill_between(table["x"], table["low"], table["high"], color=colour, alpha=0.12, lw=0)
    axis.plot(table["x"], table["value"], f"{MARKERS[i % len(MARKERS)]}-", color=colour,
              markersize=3)  # fmt: skip
    drawn.append(table.assign(crosscoder=name, panel=event, group="all"))


def _snapshots(
    strength: Axes,
    signs: Axes | None,
    table: pd.DataFrame,
    name: str,
    i: int,
    drawn: list[pd.DataFrame],
) -> None:
    colour, marker = COLOURS[i % len(COLOURS)], f"{MARKERS[i % len(MARKERS)]}-"
    low, middle, high = (table[f"strength_{q}"] for q in ("q25", "median", "q75"))
    strength.fill_between(table["step"], low, high, color=colour, alpha=0.1, lw=0)
    strength.plot(table["step"], middle, marker, color=colour, markersize=2.5)
    frame = pd.DataFrame({"x": table["step"], "low": low, "value": middle, "high": high})
    drawn.append(frame.assign(crosscoder=name, panel="strength", group="all"))
    if signs is not None and table["signs_agree"].notna().any():
        signs.plot(table["step"], table["signs_agree"], marker, color=colour, markersize=2.5)
        frame = pd.DataFrame({"x": table["step"], "value": table["signs_agree"]})
        drawn.append(frame.assign(crosscoder=name, panel="signs", group="all"))


def _relay(
    axis: Axes,
    names: list[str],
    strengths: list[Path],
    relays: pd.DataFrame,
    drawn: list[pd.DataFrame],
) -> None:
    """Normalised strengths of the two features in the relay with the largest overlap."""
    most = relays.sort_values("overlap", kind="stable").iloc[-1]
    i = int(most["crosscoder"])
    table = read_table(strengths[i])
    for column, line in (("falling", "-"), ("rising", "--")):
        own = table[table["feature"] == most[column]]
        axis.plot(own["step"], own["normalised_strength"], line, color=COLOURS[i % len(COLOURS)],
                  label=f"feature {int(most[column])}")  # fmt: skip
        frame = pd.DataFrame({"x": own["step"], "value": own["normalised_strength"]})
        drawn.append(frame.assign(crosscoder=names[i], panel="relay", group=column))
    style.step_axis(axis, table["step"].max(), "log")
    axis.set(ylim=(0, 1.55), yticks=np.linspace(0, 1, 6))  # room for the legend
    text = f"{names[i]}, cosine {most['cosine']:.2f}\nactivations correlate {most['overlap']:.2f}"
    axis.legend(title=text, title_fontsize=6, loc="upper left")

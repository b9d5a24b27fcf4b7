"""How well the crosscoder describes each snapshot, and its baselines (docs/method.md 3 and 8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ontogeny.activations.basis_file import Kept
from ontogeny.figures import style
from ontogeny.files import InputError

SUBSPACE = "principal subspace"
LEAST_DAMAGE = 0.05  # least cost of mean-ablation in nats for which loss recovered is meaningful
MEASURES = {
    "explained_variance": "explained variance",
    "l0": "L0 (active features per token)",
    "loss_recovered": "loss recovered",
}
NEEDED = ["snapshot_index", "step", "layer", "stream", "explained_variance"]
BASELINES = {  # baselines of explained variance: column and line style
    "PCA, as many coefficients": ("pca", "-."),
    "token table": ("token", ":"),
    "token pair table": ("pair", "--"),
}
NEEDED += [f"{name}_explained_variance" for name, _ in BASELINES.values()]
NEEDED += ["l0", "l0_present", "loss", "loss_ablated"]
NEEDED += ["loss_recovered", "loss_recovered_low", "loss_recovered_high"]
HOLLOW = f"mean-ablation costs < {LEAST_DAMAGE} nats"
LINES = ("-", "--", "-.", ":")
SEEDS = ("#1F3A5F", "#000000", "#7A7A7A", "#AA4499")
PRESENT = ("#8FA3B8", "#C9B037", "#B5B5B5", "#DDAACC")


def draw(
    fidelity: list[Path],
    seeds: list[int],
    random: list[Path],
    basis: Path | None,
    of_rest: bool,
    output: Path,
) -> None:
    """Explained variance, L0 and loss recovered per snapshot, on a log and a linear axis of steps.

    Parameters
    ----------
    fidelity, random : tables, one per seed, for the snapshots of one layer and stream. `random` are
        dictionaries whose decoder directions stay random; it may be empty. seeds : their names.
    basis : file of the principal subspace that the encoder reads; None if it reads all dimensions.
    of_rest : whether the subspace was computed after subtracting the token table.
    output : path without ending. Its CSV has series, measure, snapshot_index, step, value,
        low, high, meaningful. The last is false, and the marker hollow, where mean-ablation costs
        the model less than 0.05 nats, so that loss recovered means nothing. For loss recovered, low
        and high are the 95% interval over blocks of text, which is shaded.
    """
    tables = {f"crosscoder, seed {s}": _read(p) for s, p in zip(seeds, fidelity, strict=True)}
    mains = list(tables)
    several = len(random) > 1
    for i, path in enumerate(random, start=1):
        tables[f"random directions, {i}" if several else "random directions"] = _read(path)
    looks: dict[str, tuple[str, Any]] = {}  # colour and line style by series
    parts = []
    for i, (name, table) in enumerate(tables.items()):
        parts += [_series(table, measure, measure, name) for measure in MEASURES]
        if name in mains:
            line = LINES[i % len(LINES)]
            looks[name] = SEEDS[i % len(SEEDS)], line
            present = f"{name}, present features"
            looks[present] = PRESENT[i % len(PRESENT)], line
            parts.append(_series(table, "l0", "l0_present", present))
        else:
            line = LINES[(i - len(mains)) % len(LINES)]
            looks[name] = style.COLOURS["random_dictionary"], line
    first = tables[mains[0]]
    for name, (column, line) in BASELINES.items():
        looks[name] = style.COLOURS[column], line
        parts.append(_series(first, "explained_variance", f"{column}_explained_variance", name))
    if basis is not None:
        looks[SUBSPACE] = "#6B6B6B", (0, (1, 1))
        inside = _inside(first, basis, of_rest)
        parts.append(_series(inside, "explained_variance", "inside", SUBSPACE))
    drawn = pd.concat(parts, ignore_index=True)

    with style.paper():
        figure = style.new_figure(180, 165)
        grid = figure.subplots(3, 2, sharey="row")
        for row, (measure, label) in zip(grid, MEASURES.items(), strict=True):
            values = drawn[drawn["measure"] == measure]
            bottom, top, hidden = _limits(measure, values)
            for axis in row:
                for series, points in values.groupby("series", sort=False):
                    _line(axis, points, str(series), looks[str(series)], bottom, top)
            row[0].set(ylabel=label, ylim=(bottom, top))
            row[0].set_title(hidden, loc="right", fontsize=6.5, color="0.35")
        style.over_training(grid, drawn["step"].max(), style.snapshots(first))
        presents = [name for name in looks if name not in (*tables, *BASELINES, SUBSPACE)]
        order = [*mains, HOLLOW, *presents, *list(tables)[len(mains) :], *BASELINES, SUBSPACE]
        style.legend(
            figure, grid[:, 0], order, loc="outside lower center", ncols=3, handlelength=2.6
        )
        style.save(figure, drawn, output, finding)


def finding(table: pd.DataFrame) -> str:
    """How much variance the crosscoder explains, against as many principal components."""
    own = table[table["measure"] == "explained_variance"]
    by = own.pivot_table(index="step", columns="series", values="value")
    seeds = [
        name for name in by if str(name).startswith("crosscoder") and "present" not in str(name)
    ]
    if not seeds:
        return ""
    mean = by[seeds].mean(axis=1)
    said = f"The crosscoder explains {mean.mean():.0%} of the variance"
    pca = [name for name in by if str(name).startswith("PCA")]
    if not pca:
        return said
    other = by[pca[0]]
    better = int((mean > other).sum())
    how = "more than" if better > len(by) / 2 else "no more than"
    return (
        f"{said}, {how} the same number of principal components "
        f"({other.mean():.0%}), and does better at {better} of {len(by)} snapshots"
    )


def _read(path: str | Path) -> pd.DataFrame:
    table = style.read(path, NEEDED)
    if len(table[["layer", "stream"]].drop_duplicates()) > 1:
        raise InputError(
            f"{path}: several layers or streams, but this figure shows the snapshots of one; use "
            "the primary crosscoder's table"
        )
    return table


def _inside(table: pd.DataFrame, basis: Path, of_rest: bool) -> pd.DataFrame:
    """The table with `inside`: the share of each site's variance that lies within the subspace.

    If the subspace was computed after subtracting the token table, the table's share is added.
    """
    kept = Kept.read(basis)
    name = table["stream"] + "." + table["layer"].astype(str) + "/step" + table["step"].astype(str)
    share = name.map(dict(zip(kept.sites, kept.shares, strict=True)))
    known = table["token_explained_variance"] if of_rest else 0.0
    return table.assign(inside=1 - (1 - known) * (1 - share))


def _series(table: pd.DataFrame, measure: str, column: str, name: str) -> pd.DataFrame:
    damage = table["loss_ablated"] - table["loss"]
    return pd.DataFrame(
        {
            "series": name,
            "measure": measure,
            "snapshot_index": table["snapshot_index"],
            "step": table["step"],
            "value": table[column],
            "low": table.get(f"{column}_low", np.nan),
            "high": table.get(f"{column}_high", np.nan),
            "meaningful": (damage >= LEAST_DAMAGE) | (measure != "loss_recovered"),
        }
    )


def _line(
    axis: Axes, points: pd.DataFrame, name: str, look: tuple[str, Any], bottom: float, top: float
) -> None:
    """A curve through the meaningful points; other points are hollow, grey and not connected."""
    solid, hollow = points[points["meaningful"]], points[~points["meaningful"]]
    colour, line = look
    axis.plot(
        solid["step"],
        solid["value"],
        color=colour,
        linestyle=line,
        marker="o" if line == "-" else None,
        markersize=2.2,
        label=name,
    )
    bounded = solid.dropna(subset=["low", "high"])
    low, high = bounded["low"], bounded["high"]
    axis.fill_between(bounded["step"], low, high, color=colour, alpha=0.2, linewidth=0)
    hollow = hollow[hollow["value"].between(bottom, top)]
    if len(hollow):
        axis.plot(
            hollow["step"],
            hollow["value"],
            "o",
            color=style.COLOURS["unsure"],
            markerfacecolor="none",
            clip_on=False,
            zorder=1,
            label=HOLLOW,
        )


def _limits(measure: str, points: pd.DataFrame) -> tuple[float, float, str]:
    """Limits of the y-axis, and a note on the values outside them."""
    values = points.loc[points["meaningful"], "value"].dropna()
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    if measure == "l0":
        return 0.0, 1.15 * high, ""
    bottom = max(low - 0.05, -0.5) if low < 0 else 0.0
    if measure == "explained_variance":
        hidden = int((points["value"] < bottom).sum())
        top = 1.02
    else:
        bottom, top = max(bottom, np.floor((low - 0.02) * 20) / 20), min(high + 0.02, 1.1)
        hidden = int((~points["value"].between(bottom, top)).sum())
    return bottom, top, f"{hidden} value{'s' if hidden > 1 else ''} off the axis" if hidden else ""

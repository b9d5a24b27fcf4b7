"""Which heads produce which kinds of feature, and since when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style

MADE = 0.5  # least mean loss of a kind whose share is drawn over steps
ORDER = ["all", *style.MARKERS, "none"]
ROLES = {
    "previous_token_head": "previous-token",
    "induction_head_text": "induction",
    "induction_head": "induction",
    "duplicate_token_head": "duplicate-token",
    "fixed_distance_head": "fixed-distance",
}


def draw(
    by_kind: Path, curves: Path, heads: Path | None, attention: Path | None, output: Path
) -> None:
    """Mean loss by head and kind; the strongest head's share by snapshot, with its attention.

    Shares are drawn for kinds that lose at least half of their activation.

    Parameters
    ----------
    by_kind, curves : CSV of the makers_by_kind stage.
    heads, attention : CSV of `induction` on what heads attend to; None without it.
    output : path without ending. Its CSV has panel ('loss', 'share', 'attention'), kind, layer,
        head, role, features, snapshot_index, step, value, low, high; shares and attention are
        divided by their maximum.

    References
    ----------
    docs/method.md 6.
    """
    table = style.read(by_kind, ["kind", "layer", "head", "features", "loss", "low", "high"])
    every = style.read(curves, ["kind", "layer", "head", "snapshot_index", "step", "share"])
    roles, attends = _roles(heads, attention)
    with style.paper():
        figure = style.new_figure(180, 130)
        layout = figure.add_gridspec(2, 2, height_ratios=[1, 1.1])
        matrix = figure.add_subplot(layout[0, :])
        grid = [figure.add_subplot(layout[1, column]) for column in (0, 1)]
        if table.empty:
            for axis in (matrix, *grid):
                style.empty(axis, "the heads of this model cannot be separated")
            columns = ["panel", "kind", "layer", "head", "step", "value"]
            style.save(figure, pd.DataFrame(columns=columns), output, finding)
            return
        drawn = [_matrix(matrix, table, roles)]
        numbers, steps = style.snapshots(every)
        strongest = table[table["strongest"].astype(bool) & (table["loss"] >= MADE)]
        names_of = zip(strongest["kind"], strongest["layer"], strongest["head"], strict=True)
        best = {kind: (int(layer), int(head)) for kind, layer, head in names_of}
        for kind, axis in zip(style.KINDS, grid, strict=True):
            drawn += _shares(axis, every, best, attends)
            axis.set_ylim(-0.15, 1.3)
            axis.axhline(0, color="0.7", linewidth=0.6, zorder=0)
            style.step_axis(axis, max(steps), kind)
            style.mark_snapshots(axis, numbers, steps, kind)
        grid[0].set_ylabel("share lost at a snapshot / largest")
        grid[0].legend(loc="upper left", fontsize=5.5, ncols=2)
        style.title(grid[0], "b", "")
        style.title(grid[1], "c", "")
        numbers_drawn = pd.concat(drawn, ignore_index=True).drop_duplicates()
        names = ["panel", "kind", "layer", "head", "role", "features", "snapshot_index", "step"]
        numbers_drawn["role"] = [
            ", ".join(roles.get(key, []))
            for key in zip(numbers_drawn["layer"], numbers_drawn["head"], strict=True)
        ]
        numbers_drawn = numbers_drawn.reindex(columns=[*names, "value", "low", "high"])
        whole = dict.fromkeys(["features", "snapshot_index", "step"], "Int64")
        style.save(figure, numbers_drawn.astype(whole), output, finding)


def finding(table: pd.DataFrame) -> str:
    """The head whose ablation costs induction and previous-token features most, if there is one
    clear answer."""
    loss = table[table["panel"] == "loss"]
    parts = []
    for kind in ("induction", "previous_token"):
        own = loss[loss["kind"] == kind].sort_values("value", ascending=False)
        if own.empty:
            continue
        first = own.iloc[0]
        said = (
            f"{kind.replace('_', '-')} features lose {first['value']:.0%} "
            f"of their activation without head {first['layer']:.0f}.{first['head']:.0f}"
        )
        if len(own) > 1 and first["low"] <= own.iloc[1]["high"]:
            other = own.iloc[1]
            said += f" (about as much as without head {other['layer']:.0f}.{other['head']:.0f})"
        parts.append(said)
    said = "; ".join(parts)
    return said[:1].upper() + said[1:]


Head = tuple[int, int]


def _roles(
    heads: Path | None, attention: Path | None
) -> tuple[dict[Head, list[str]], dict[Head, pd.DataFrame]]:
    """What heads do, and their attention over steps, for the roles that form."""
    roles: dict[Head, list[str]] = {}
    attends: dict[Head, pd.DataFrame] = {}
    if heads is None or attention is None:
        return roles, attends
    columns = ["event", "detail", "verdict"]
    of_curves = ["event", "detail", "snapshot_index", "step", "value"]
    events = style.read(heads, columns, dtype={"detail": str})
    curves = style.read(attention, of_curves, dtype={"detail": str})
    for _, row in events[events["event"].isin(ROLES) & (events["verdict"] == "forms")].iterrows():
        layer, head = (int(number) for number in row["detail"].split("."))
        of = roles.setdefault((layer, head), [])
        of += [ROLES[row["event"]]] if ROLES[row["event"]] not in of else []
        if (layer, head) not in attends:
            own = curves[(curves["event"] == row["event"]) & (curves["detail"] == row["detail"])]
            attends[layer, head] = own
    return roles, attends


def _matrix(axis: Axes, table: pd.DataFrame, roles: dict[Head, list[str]]) -> pd.DataFrame:
    """Mean loss of each kind's features by head, with the numbers written into the cells."""
    kinds = [kind for kind in ORDER if kind in set(table["kind"])]
    wide = table.pivot(index=["layer", "head"], columns="kind", values="loss")[kinds]
    counts = table.groupby("kind")["features"].first()
    axis.imshow(wide.clip(0, 1), vmin=0, vmax=1, cmap="Purples", aspect="auto")
    if wide.size <= 120:
        for (row, column), value in np.ndenumerate(wide.to_numpy()):
            colour = "white" if value > 0.6 else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, size=6)
    names = [f"{kind.replace('_', ' ')}\n({counts[kind]:,})" for kind in kinds]
    axis.set_xticks(range(len(kinds)), names)
    labels = [
        " ".join([f"{layer}.{head}", *([f"({', '.join(of)})"] if of else [])])
        for layer, head in wide.index
        for of in [roles.get((layer, head), [])]
    ]
    axis.set_yticks(range(len(labels)), labels)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_ylabel("head ablated, layer.head")
    style.title(axis, "a", "share of a kind's activation that is lost without a head")
    return table.rename(columns={"loss": "value"})[
        ["kind", "layer", "head", "features", "value", "low", "high"]
    ].assign(panel="loss")


def _shares(
    axis: Axes, every: pd.DataFrame, best: dict[str, Head], attends: dict[Head, pd.DataFrame]
) -> list[pd.DataFrame]:
    """Each kind's normalised share of its strongest head, and that head's attention."""
    drawn: list[pd.DataFrame] = []
    shown: set[Head] = set()
    for kind, marker in style.MARKERS.items():
        if kind not in best:
            continue
        layer, head = best[kind]
        which = (every["kind"] == kind) & (every["layer"] == layer) & (every["head"] == head)
        curve = every[which].sort_values("step").rename(columns={"share": "value"})
        largest = curve["value"].max()
        if not largest > 0:
            continue
        curve[["value", "low", "high"]] /= largest
        colour, label = style.COLOURS[kind], f"{kind.replace('_', ' ')}, head {layer}.{head}"
        axis.fill_between(
            curve["step"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0
        )
        axis.plot(curve["step"], curve["value"], marker + "-", color=colour, label=label)
        drawn.append(curve.assign(panel="share"))
        shown.add((layer, head))
    for layer, head in sorted(shown & set(attends)):
        own = attends[layer, head].sort_values("step")
        line = own.assign(panel="attention", layer=layer, head=head)
        line[["value", "low", "high"]] /= own["value"].max()
        axis.plot(
            line["step"], line["value"], "--", color="0.25", linewidth=1.1 if layer else 0.7,
            label=f"attention of head {layer}.{head}",
        )  # fmt: skip
        columns = ["panel", "layer", "head", "snapshot_index", "step", "value", "low", "high"]
        drawn.append(line[columns])
    return drawn

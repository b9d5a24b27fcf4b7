"""How much the current token explains, and how the tokens' means rotate (docs/method.md 3)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ontogeny.analyses.tokens.numbers import SETTLED, of_place
from ontogeny.figures import style
from ontogeny.settings import Settings

PANELS = {  # for each panel: the label of its axis, and name, colour and line style of each line
    "share of variance": {
        "explained": ("token table", style.COLOURS["token"], "o-"),
        "explained_by_pairs": ("token pair table", style.COLOURS["pair"], "--"),
    },
    "cosine, share": {
        "cosine_last": ("cosine with the last snapshot's means", style.CASES[0], "o-"),
        "distinct": ("share of tokens that are distinct", style.COLOURS["matched"], "--"),
    },
    "norm, model's units": {
        "norm": ("of a token's mean, less the overall mean", style.COLOURS["token"], "o-"),
        "left_norm": ("of what the token table leaves", style.COLOURS["unsure"], "--"),
    },
}


def title(table: pd.DataFrame) -> str:
    """The finding in words, from the table for one layer and stream."""
    found = of_place(table)
    steps = {
        table["step"].min(): found["token_table_first"],
        table["step"].max(): found["token_table_last"],
        found["token_table_least_step"]: found["token_table_least"],
    }
    first, *others = [f"at step {step:,}" for step in sorted(steps)]
    each = [f"{steps[step]:.0%}" for step in sorted(steps)]
    rest = [f"{share} {step}" for share, step in zip(each[1:], others, strict=True)]
    shares = " and ".join(
        [", ".join([f"{each[0]} of the variance {first}", *rest[:-1]]), *rest[-1:]]
    )
    settled = found["token_means_settled_step"]
    kept = f"are within a cosine of {SETTLED:g} of their final values"
    since = f"from step {settled:,} on" if settled is not None else "at no step"
    return f"The token alone explains {shares}; the token means {kept} {since}"


def draw(settings: Settings, token_means: Path, output: Path) -> None:
    """Share of variance, rotation and norms of the token means at the primary crosscoder's site.

    Parameters
    ----------
    token_means : the table of measure.py. output : path without ending. Its CSV has series,
        snapshot_index, step, value.
    """
    names = [name for lines in PANELS.values() for name in lines]
    where = ["layer", "stream", "snapshot_index", "step"]
    table = style.read(token_means, [*where, *names])
    inputs = settings.crosscoders[settings.primary].inputs
    own = (table["layer"] == inputs.layers[0]) & (table["stream"] == inputs.streams[0])
    table = table[own].sort_values("step")
    with style.paper():
        figure = style.new_figure(180, 150)
        grid = figure.subplots(len(PANELS), 2, sharey="row")
        for row, (label, lines) in zip(grid, PANELS.items(), strict=True):
            for axis in row:
                for name, (text, colour, line) in lines.items():
                    axis.plot(
                        table["step"], table[name], line, color=colour, markersize=2.2, label=text
                    )
                most = axis.get_ylim()[1] if label.startswith("norm") else 1.03
                axis.set_ylim(min(0, table[list(lines)].min().min()), most)
            row[0].set_ylabel(label)
            row[1].legend(loc="best")
        style.over_training(grid, table["step"].max(), style.snapshots(table))
        drawn = table.melt(["snapshot_index", "step"], names, var_name="series")
        style.save(figure, drawn, output, finding)


def finding(table: pd.DataFrame) -> str:
    """How much the token alone explains, and since when the means keep their direction."""
    wide = table.pivot(index=["snapshot_index", "step"], columns="series", values="value")
    return title(wide.reset_index())

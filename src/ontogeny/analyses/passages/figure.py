"""Passages during training: when each token of a text becomes predictable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.figures import style, token_losses

SHOWN = 3  # number of passages
COLUMNS = ["passage", "source", "position", "token", "step", "loss"]


def draw(passages: Path, output: Path) -> None:
    """Draw the loss of each token of three passages; the last is from a task if there is one.

    Parameters
    ----------
    output : path without ending. Its CSV has passage, source, position, token, step, loss (nats).
    """
    table = style.read(passages, COLUMNS)[COLUMNS]
    every = table["passage"].unique()
    chosen = np.unique(every[np.linspace(0, len(every) - 1, SHOWN).round().astype(int)])
    table = table[table["passage"].isin(chosen)]
    largest = float(np.nanquantile(table["loss"], 0.99))
    with style.paper():
        figure = style.new_figure(180, 150)
        axes = figure.subplots(1, len(chosen), squeeze=False)[0]
        for letter, axis, (_, own) in zip("abc", axes, table.groupby("passage"), strict=False):
            image = token_losses.draw(axis, own, largest, 6)
            axis.tick_params(axis="y", labelsize=5.5)
            if axis is not axes[len(axes) // 2]:
                axis.set_xlabel("")
            style.title(axis, letter, str(own["source"].iloc[0]).replace("_", " "))
        figure.colorbar(image, ax=axes, label="loss of the token (nats)", shrink=0.6, pad=0.015)
        style.save(figure, pd.DataFrame(table), output, finding)


def finding(table: pd.DataFrame) -> str:
    """How the median token's loss changes, and how many tokens end with a higher loss."""
    known = table.dropna(subset=["loss"])
    if known.empty:
        return "No passage has a token whose loss is known"
    curves = known.pivot_table(index=["passage", "position"], columns="step", values="loss")
    median = curves.median()
    first, last = float(median.iloc[0]), float(median.iloc[-1])
    count = known["passage"].nunique()
    passages = f"{count} passages" if count != 1 else "One passage"
    if last >= first:
        return f"{passages}: the median token's loss does not fall: {first:.1f} to {last:.1f} nats"
    half = median.index[(median <= (first + last) / 2).to_numpy()][0]
    worse = float((curves.iloc[:, -1] > curves.iloc[:, 0]).mean())
    return (
        f"{passages}: the median token's loss falls from {first:.1f} to {last:.1f} nats, half of "
        f"it by step {half:,}; {worse:.0%} of the tokens are less expected at the end than at "
        "the start"
    )

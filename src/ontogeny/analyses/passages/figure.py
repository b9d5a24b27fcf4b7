"""Passages through training: when each token of a text begins to be expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.figures import style, token_losses

SHOWN = 3  # passages
COLUMNS = ["passage", "source", "position", "token", "step", "loss"]


def draw(passages: Path, output: Path) -> None:
    """Draw the loss of each token of three passages, the last of a task if there is one.

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
        style.save(figure, pd.DataFrame(table), output)

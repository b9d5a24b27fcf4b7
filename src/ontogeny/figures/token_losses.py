"""Losses of a text's tokens during training, as a heat map for figures and notebooks."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from ontogeny.corpus.pieces import visible
from ontogeny.figures import style
from ontogeny.figures.glyphs import drawable, fonts

LONGEST = 14  # most letters of a token


def draw(axis: Axes, tokens: pd.DataFrame, largest: float, ticks: int = 12) -> AxesImage:
    """Draw the loss of each token (rows, from the top) at each snapshot.

    Parameters
    ----------
    tokens : position, token, step, loss (nats). largest : loss at the end of the colour scale.
    ticks : maximum number of labelled snapshots.
    """
    square = tokens.pivot(index="position", columns="step", values="loss")
    image = axis.imshow(square, aspect="auto", vmin=0, vmax=largest, interpolation="nearest")
    label(axis, tokens.drop_duplicates("position")["token"])
    steps = [int(step) for step in square.columns]
    style.snapshot_axis(axis, list(range(1, len(steps) + 1)), steps, ticks)
    return image


def label(axis: Axes, tokens: Iterable[str]) -> None:
    """Label the rows of an axis with tokens; no letter is interpreted as markup."""
    texts = [drawable(visible(token).replace(" ", "␣")) for token in tokens]
    texts = [text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text in texts]
    axis.set_yticks(range(len(texts)), texts)
    for text in axis.get_yticklabels():
        text.set(fontfamily=fonts()[0], parse_math=False)

"""Counts of features by the bin of their peak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from toy_package.settings import Toy

from ontogeny.figures import style
from ontogeny.files import write_table
from ontogeny.settings import Settings


def measure(settings: Settings, features: Path, bins: Path) -> None:
    """Write how many living features peak in each bin."""
    table = pd.read_parquet(features)
    peaks = table.loc[table["alive"], "peak_step"]
    counts, edges = np.histogram(peaks, settings.section(Toy).bins)
    write_table(bins, pd.DataFrame({"first_step": edges[:-1], "features": counts}))


def draw(bins: Path, output: Path) -> None:
    """Draw the counts."""
    table = pd.read_csv(bins)
    with style.paper():
        figure: Figure = style.new_figure(60, 40)
        figure.subplots().plot(table["first_step"], table["features"])
        style.save(figure, table, output)

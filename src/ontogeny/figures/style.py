"""What the figures share: the style file, colours by role, axes over training, saving.

Figures use matplotlib's object interface, not pyplot, so there is no window and no global state,
and the Agg and PDF renderers are used whatever backend is configured.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from ontogeny import files
from ontogeny.files import InputError, read_table, whole, write_table

STYLE = Path(__file__).with_name("ontogeny.mplstyle")
PNG_DPI = 200
# What a line of a title keeps together.
TOGETHER = re.compile(r" = |(?<=[\d%]) (?=\[)|\[[^\[\]]*\]")
LETTERS, LINE = 15.2, 0.155  # letters of a title per inch, and a line's height in inches
Kind = Literal["log", "linear"]
KINDS: tuple[Kind, Kind] = ("log", "linear")

# Colours of kinds and classes have no other meaning in any figure or in the atlas.
KIND_COLOURS = {
    "current_token": "#0072B2",
    "previous_token": "#E69F00",
    "induction": "#CC79A7",
    "context": "#D55E00",
    "position": "#009E73",
}
CLASS_COLOURS = {
    "initialisation": "#5D3A9B",
    "emergent": "#7A8B00",
    "transient": "#8B1A1A",
    "reappearing": "#6B4F3A",
    "doubtful": "#7F7F7F",
}
COLOURS = {
    **KIND_COLOURS,
    **CLASS_COLOURS,
    "all": "#B5B5B5",
    "matched": "#33556B",
    "unmatched": "#B5B5B5",
    "only_first": "#88CCEE",
    "shared": "#332288",
    "only_last": "#AA4499",
    "between": "#B5B5B5",
    "held_out": "#000000",
    "batch": "#BBBBBB",
    "unigram": "#8A8A8A",
    "bigram": "#4A4A4A",
    "learning_rate": "#444444",
    "copying": "#01665E",
    "copying_near": "#5AB4AC",
    "random_tokens": "#A67FB5",
    "crosscoder": "#1F3A5F",
    "pca": "#5AB4AC",
    "token": "#A65628",
    "pair": "#4D4D4D",
    "random_dictionary": "#A67FB5",
    "unsure": "#999999",
    "token_means": "#A65628",
    "random_rows": "#A67FB5",
}
# Colours of seeds, tasks, sizes and other cases, in this order.
CASES = ("#1F3A5F", "#A65628", "#5AB4AC", "#AA4499", "#8FA3B8", "#C9B037", "#000000", "#999999")
MARKERS = {  # markers of the kinds of feature, also used in the atlas
    "current_token": "o",
    "previous_token": "s",
    "induction": "D",
    "context": "^",
    "position": "v",
}


@contextmanager
def paper() -> Iterator[None]:
    """Draw and save in the project's style only, ignoring matplotlibrc."""
    with matplotlib.style.context(STYLE, after_reset=True):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in mm."""
    return Figure(figsize=(width / 25.4, height / 25.4))


def read(path: str | Path, columns: Iterable[str], **options: Any) -> pd.DataFrame:
    """Read a tidy table (Parquet or CSV, by its ending) that must have `columns`.

    Parameters
    ----------
    options : of the reader in pandas.

    Raises
    ------
    InputError : a column is missing, or the file is missing or damaged.
    """
    table = read_table(path, **options)
    _require(path, "column", columns, table.columns)
    return table


def read_json(path: str | Path, keys: Iterable[str]) -> dict[str, Any]:
    """Read a JSON object that must have `keys`.

    Raises
    ------
    InputError : a key is missing, or the file is missing or damaged.
    """
    with files.reading(path):
        value: dict[str, Any] = dict(files.read_json(path))
    _require(path, "key", keys, value)
    return value


def _require(path: str | Path, what: str, wanted: Iterable[str], there: Iterable[str]) -> None:
    known = set(there)
    missing = [name for name in wanted if name not in known]
    if missing:
        names = ", ".join(missing)
        raise InputError(f"{path}: no {what} {names}; delete the file and make it again")


def read_living(path: str | Path, columns: Iterable[str] = ()) -> pd.DataFrame:
    """Read the living features of a features table; alive, matched and matched_cosine are needed.

    Raises
    ------
    InputError : a column is missing, or all features are dead.
    """
    table = read(path, ["feature", "alive", "matched", "matched_cosine", *columns])
    living = table[table["alive"]].reset_index(drop=True)
    if living.empty:
        raise InputError(f"{path}: no living feature to draw; train the crosscoder for longer")
    return living


def names_of(path: Path | None) -> dict[int, str]:
    """Names of features by number, from the table of names; empty if there is no table.

    Names of only the strongest contexts are left out: they are long and say less.
    """
    if path is None:
        return {}
    table = read(path, ["feature", "name", "strongest"])
    whole = table[(table["name"] != "") & ~table["strongest"]]
    return dict(zip(whole["feature"].astype(int), whole["name"].astype(str), strict=True))


def snapshots(table: pd.DataFrame) -> tuple[list[int], list[int]]:
    """Indices and training steps of a tidy table's snapshots, in training order."""
    known = table[["snapshot_index", "step"]].drop_duplicates().sort_values("step")
    return list(known["snapshot_index"]), list(known["step"])


def by_class(living: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The features of each class; initialisation and emergent ones only if kept to the end."""
    kept = living[~living["transient"]]
    return {
        "initialisation": kept[kept["initialisation"]],
        "emergent": kept[kept["emergent"]],
        "transient": living[living["transient"]],
    }


def of_one_seed(living: pd.DataFrame) -> bool:
    """Whether there is no other seed in which features could have been found again."""
    return bool(living["matched_cosine"].isna().all())


def by_match(living: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The features found again with another seed, whose onsets can be trusted, and the others."""
    return {"matched": living[living["matched"]], "unmatched": living[~living["matched"]]}


def matched_note(living: pd.DataFrame) -> str:
    """A sentence on the share of living features that is matched across seeds."""
    count = len(living)
    if of_one_seed(living):
        return f"{count:,} living features, one seed: it is not known which of them are stable"
    matched = int(living["matched"].sum())
    return f"{matched:,} of {count:,} living features matched across seeds ({matched / count:.0%})"


def title(axis: Axes, letter: str, text: str) -> None:
    """Title at the left, preceded by the panel's letter in bold."""
    axis.set_title(rf"$\mathbf{{{letter}}}$  {text}", loc="left")


def empty(axis: Axes, text: str) -> None:
    """Write into the middle of a panel why it is empty."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.text(
        0.5, 0.5, text, ha="center", va="center", color="0.4", transform=axis.transAxes, wrap=True
    )


def _step_label(step: float, _: object = None) -> str:
    if step >= 10_000 and step % 1000 == 0:
        return f"{step / 1000:.0f}k"
    return f"{step:.0f}"


def _scale(axis: Axes, last: float, kind: Kind) -> None:
    """Scale and limits from step 0 to `last`, with room for a marker at both ends."""
    last = max(float(last), 1.0)
    if kind == "log":
        axis.set_xscale("function", functions=(np.log1p, np.expm1))
        room = 0.025 * np.log1p(last)
        axis.set_xlim(np.expm1(-room), np.expm1(np.log1p(last) + room))
    else:
        axis.set_xlim(-0.025 * last, 1.025 * last)


def legend(figure: Figure, axes: Iterable[Axes], names: Iterable[str] = (), **look: Any) -> None:
    """One legend for all axes of a figure, each name once, in the order of `names`."""
    handles: dict[str, Any] = {}
    for axis in axes:
        artists, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, artists, strict=True))
    shown = [name for name in names or handles if name in handles]
    figure.legend([handles[name] for name in shown], shown, **look)


def histogram(axis: Axes, values: Any, edges: np.ndarray, **look: Any) -> np.ndarray:
    """Outline a histogram, with values beyond the edges in the outermost bins; returns counts."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    axis.stairs(counts, edges, **look)
    return counts


def step_axis(axis: Axes, last: float, kind: Kind, labels: bool = True) -> None:
    """Make the x-axis a scale of training steps from 0 to `last`.

    Parameters
    ----------
    kind : 'log' for log(step + 1) with ticks at the true steps 0, 1, 10, 100, …, or 'linear'.
    labels : whether to draw tick and axis labels (only the lowest panel has them).
    """
    _scale(axis, last, kind)
    if kind == "log":
        decades = [10**k for k in range(int(np.log10(max(last, 1))) + 1)]
        axis.xaxis.set_major_locator(FixedLocator([0, *decades]))
        minor = [m * d for d in decades for m in range(2, 10) if m * d <= last]
        axis.xaxis.set_minor_locator(FixedLocator(minor))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(_step_label))
    if labels:
        axis.set_xlabel("training step (log axis)" if kind == "log" else "training step")
    else:
        axis.tick_params(axis="x", which="both", labelbottom=False)


def over_training(
    grid: np.ndarray[Any, Any],
    last: float,
    marks: tuple[Sequence[int], Sequence[int]] | None = None,
    first: str = "a",
    labels: bool = True,
) -> None:
    """Turn rows of two panels into plots over training, with a log and a linear axis of steps.

    Call this after everything is drawn.

    Parameters
    ----------
    grid : (rows, 2) axes, lettered row by row from `first`. last : step at which the axes end.
    marks : indices and steps of the snapshots to mark above the first row.
    labels : whether the last row has tick and axis labels for the steps.
    """
    for i, (row, column) in enumerate(np.ndindex(grid.shape)):
        axis: Any = grid[row, column]
        kind = KINDS[column]
        step_axis(axis, last, kind, labels and row == len(grid) - 1)
        if marks is not None and row == 0:
            mark_snapshots(axis, *marks, kind)
        title(axis, chr(ord(first) + i), "")


def mark_snapshots(
    axis: Axes, numbers: Sequence[int], steps: Sequence[int], kind: Kind, labels: bool = True
) -> None:
    """Tick every snapshot above an axis of steps, and label as many indices as fit."""
    top = axis.twiny()
    _scale(top, max(steps), kind)
    top.set_xlim(axis.get_xlim())
    top.spines["top"].set_visible(True)
    place = top.transLimits.transform(top.transScale.transform(np.c_[steps, steps]))[:, 0]
    shown = _spaced(list(place), 0.06)
    top.xaxis.set_major_locator(FixedLocator([steps[i] for i in shown]))
    top.xaxis.set_minor_locator(FixedLocator(list(steps)))
    top.xaxis.set_minor_formatter(NullFormatter())
    names = {float(steps[i]): str(numbers[i]) for i in shown}
    top.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names.get(float(x), "")))
    top.tick_params(axis="x", which="both", labeltop=labels)
    top.tick_params(axis="x", which="major", pad=1.5, labelsize=6, length=2.8)
    top.tick_params(axis="x", which="minor", length=2.8, width=0.6)
    if labels:
        top.set_xlabel("snapshot number", fontsize=6.5, labelpad=3)


def _spaced(places: Sequence[float], least: float) -> list[int]:
    """Indices of places that are at least `least` apart, including the first and the last."""
    shown = [len(places) - 1]
    for i in reversed(range(len(places) - 1)):
        if places[shown[-1]] - places[i] >= least:
            shown.append(i)
    if len(shown) > 1:
        shown[-1] = 0
    return shown[::-1]


def snapshot_axis(
    axis: Axes,
    numbers: Sequence[int],
    steps: Sequence[int],
    at_most: int,
    which: Literal["x", "y"] = "x",
    upright: bool = False,
) -> None:
    """Label an axis whose positions 0, 1, … are snapshots with index and training step.

    Parameters
    ----------
    at_most : number of labels that fit; every snapshot has a tick.
    upright : turn the labels of an x-axis by 90°, so that more of them fit.
    """
    count = len(numbers)
    shown = _spaced([i / max(1, count - 1) for i in range(count)], 1 / max(1, at_most - 1) - 1e-9)
    one = axis.xaxis if which == "x" else axis.yaxis
    stacked = which == "x" and not upright
    between = "\n" if stacked else " · "
    one.set_major_locator(FixedLocator(shown))
    names = {i: f"{numbers[i]}{between}{_step_label(steps[i])}" for i in shown}
    one.set_major_formatter(FuncFormatter(lambda x, _: names.get(round(x), "")))
    one.set_minor_locator(FixedLocator(range(count)))
    one.set_minor_formatter(NullFormatter())
    axis.tick_params(axis=which, labelsize=6)
    if upright:
        axis.tick_params(axis=which, labelrotation=90, labelsize=6.5)
    label = "snapshot number, below it the training step"
    one.set_label_text(label if stacked else "snapshot number · training step")


Finding = Callable[[pd.DataFrame], str]
"""One sentence on a figure's numbers, made from the table in its CSV; '' if there is none."""


def balanced(said: str, letters: int) -> str:
    """A text in as few lines of at most so many letters as it needs, of about equal length.

    A number stays on one line with its sign of equality and its interval.
    """
    said = TOGETHER.sub(lambda found: found[0].replace(" ", "\u00a0"), said)
    count = len(textwrap.wrap(said, letters))
    while letters > 1 and len(textwrap.wrap(said, letters - 1, break_long_words=False)) == count:
        letters -= 1
    return textwrap.fill(said, letters, break_long_words=False).replace("\u00a0", " ")


def _entitle(figure: Figure, said: str) -> None:
    """Put lines above a figure's title, and make the figure taller by their height.

    A figure without a layout engine has to leave room for them itself.
    """
    if not said:
        return
    note, place = figure.get_suptitle(), {}
    if figure.get_layout_engine() is None:
        place["y"] = 1 - 0.08 / figure.get_figheight()
    else:
        figure.set_figheight(figure.get_figheight() + LINE * (said.count("\n") + 1))
    figure.suptitle(f"{said}\n{note}" if note else said, x=0.01, ha="left", va="top", **place)


def save(
    figure: Figure, table: pd.DataFrame, path_stem: str | Path, finding: Finding | None = None
) -> None:
    """Write `path_stem`.pdf, .png and .csv, each whole or not at all.

    The bytes depend only on what is drawn: no dates, and no software name in the PNG.

    Parameters
    ----------
    table : exactly the numbers drawn. finding : makes the title from them, as the CSV has them; an
    existing title becomes a note below it.
    """
    write_table(f"{path_stem}.csv", table)
    if finding is not None:
        said = finding(pd.read_csv(f"{path_stem}.csv", low_memory=False))
        letters = int(LETTERS * figure.get_figwidth())
        _entitle(figure, balanced(said, letters))
    with whole(f"{path_stem}.png") as draft:
        figure.savefig(draft, format="png", dpi=PNG_DPI, metadata={"Software": None})
    figure.set_layout_engine("none")  # the PDF keeps the PNG's layout
    with whole(f"{path_stem}.pdf") as draft:
        figure.savefig(draft, format="pdf", metadata={"CreationDate": None})

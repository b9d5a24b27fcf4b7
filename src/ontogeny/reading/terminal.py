"""`ontogeny read`: a reading as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ontogeny.corpus.pieces import visible
from ontogeny.files import InputError
from ontogeny.reading.reading import Reading
from ontogeny.show import HEAD, Line, Piece, cells

LOSSES = 6  # snapshots whose losses are shown, in addition to those that are asked for
LOSS = 6  # width of a loss in cells
LONGEST = 14  # largest width of a token in cells
BETWEEN = " · "


class Wanted(NamedTuple):
    """What to show of a reading.

    Attributes
    ----------
    steps : snapshots whose predictions and features are shown; () for the last one only.
    features, predictions : how many per token; None for as many features as fit on a line.
    long : show each feature on a separate line, with its kind and activation.
    """

    steps: tuple[int, ...] = ()
    features: int | None = None
    predictions: int = 3
    long: bool = False


def lines(reading: Reading, wanted: Wanted, width: int) -> Iterator[Line]:
    """A reading as lines: each token with its losses, what may follow, and its features.

    Parameters
    ----------
    width : of the terminal in cells.

    Raises
    ------
    InputError : a wanted step is not a snapshot.
    """
    found = reading.trace
    at = list(dict.fromkeys(wanted.steps)) or found.steps[-1:]
    shown = _shown(found.steps, at)
    table = reading.features[reading.features["step"].isin(at)]
    rows = dict(list(table.groupby(["position", "step"])))
    since = {step: reading.since(step) for step in at}
    tokens = {i: _token(reading.texts[i]) for i in map(int, np.flatnonzero(found.position >= 0))}
    column = max(5, *map(cells, tokens.values()))
    yield from _heading(shown, at, column)
    for i, token in tokens.items():
        losses = "".join(_loss(found.loss[i, found.steps.index(step)]) for step in shown)
        start = [Piece(token, HEAD), Piece(" " * (column - cells(token)) + losses + "  ")]
        if len(at) > 1:
            yield Line(start)
        for step in at:
            if len(at) > 1:
                start = [Piece(f"{'':<{column}}  step {step}: ")]
            following = _following(reading, i, step, wanted.predictions)
            yield Line([*start, *following], column + 2)
            own = rows.get((found.position[i], step), table.iloc[:0])
            yield from _features(own, i, since[step], wanted, column + 2, width)
    yield from _legend()


def _shown(steps: Sequence[int], also: Sequence[int]) -> list[int]:
    """Steps whose losses are shown: LOSSES of them, evenly spaced by index, and those in `also`."""
    absent = [step for step in also if step not in steps]
    if absent:
        there = ", ".join(map(str, steps))
        raise InputError(
            f"--step {absent[0]}: there is no snapshot of that step; choose from {there}"
        )
    places = np.linspace(0, len(steps) - 1, min(LOSSES, len(steps))).round().astype(int)
    return sorted({*(steps[i] for i in places), *also})


def _heading(shown: Sequence[int], at: Sequence[int], column: int) -> Iterator[Line]:
    after = f"  likeliest next at step {at[0]}" if len(at) == 1 else ""
    yield Line([Piece(" " * column), Piece("  loss at step (nats)")])
    yield Line([Piece(f"{'token':<{column}}" + "".join(f"{s:>{LOSS}}" for s in shown) + after)])


def _token(text: str) -> str:
    """A token as shown in a column: every character is visible, and long tokens are shortened."""
    shown = visible(text).replace(" ", "␣")
    if cells(shown) <= LONGEST:
        return shown
    while cells(shown) >= LONGEST:
        shown = shown[:-1]
    return shown + "…"


def _loss(loss: float) -> str:
    return " " * LOSS if np.isnan(loss) else f"{loss:>{LOSS}.2f}"


def _following(reading: Reading, row: int, step: int, count: int) -> Iterator[Piece]:
    found = reading.trace
    of_step = found.steps.index(step)
    likeliest = zip(found.following[row, of_step], found.probability[row, of_step], strict=True)
    for number, p in list(likeliest)[:count]:
        yield Piece(f"{_token(reading.vocabulary.one(number))} {p:.0%}  ")


def _features(
    table: pd.DataFrame,
    row: int,
    since: dict[tuple[int, int], int],
    wanted: Wanted,
    indent: int,
    width: int,
) -> Iterator[Line]:
    """A token's features, largest contribution first; each at its best site."""
    best = table.sort_values("contribution", ascending=False, kind="stable")
    best = best.drop_duplicates("feature")[: wanted.features]
    records: list[dict[str, Any]] = [
        dict(zip(map(str, best), row, strict=True)) for row in best.to_numpy()
    ]
    start = Piece(" " * indent)
    if wanted.long:
        for record in records:
            yield Line([start, Piece(_full(record, since.get((row, record["feature"]))))], indent)
        return
    pieces, used = [start], indent
    for number, record in enumerate(records):
        text = BETWEEN * (number > 0) + _short(record, since.get((row, record["feature"])))
        if wanted.features is None and number and used + cells(visible(text)) > width:
            break
        pieces.append(Piece(text))
        used += cells(visible(text))
    if records:
        yield Line(pieces, indent)


def _short(record: dict[str, Any], since: int | None) -> str:
    """Name or kind, number, contribution, and the step since which the feature has been present."""
    about = f"“{record['name']}”" if record["name"] else _kind(record)
    size = f"{record['contribution']:.2g}" + ("↓" if since is None else f"@{since}")
    return f"{about} #{record['feature']} {size}".strip()


def _full(record: dict[str, Any], since: int | None) -> str:
    """The same, with the kind, the activation and the site."""
    there = "below half by now" if since is None else f"since step {since}"
    size = f"{record['contribution']:>5.2f}  f {record['activation']:>5.2f}"
    site = f"{record['stream']}.{record['layer']}"
    name = f"“{record['name']}”" if record["name"] else ""
    about = ", ".join(part for part in (name, _kind(record)) if part)
    return f"#{record['feature']:<6}{size}  {there:<17}  {site}  {about}"


def _kind(record: dict[str, Any]) -> str:
    kind = str(record["kind"])
    return "" if kind == "none" else kind.replace("_", " ")


def _legend() -> list[Line]:
    text = (
        "features at the last step shown: “name” or kind, #number, size of the contribution "
        "(rows of activations have the mean size √d), @ the step since which the contribution is "
        "at least half of its largest on this token, ↓ if it is below half again by then"
    )
    return [Line([]), Line([Piece(text)], 0)]

"""The loss of each snapshot on a little held-out text, and which snapshot does not fit in order.

It is measured when a snapshot is read, long before the loss curves of the results: a checkpoint
that holds the weights of another step shows in its loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny.files import read_json, write_table

LEAST_SNAPSHOTS = 4  # with fewer, an unusual one cannot be identified
LEAST = 0.1  # nats
OF_RANGE = 0.02  # share of the whole fall of the loss
OF_NOISE = 8.0  # multiple of the usual deviation
OF_END = 0.25  # most that the first or last may exceed its neighbour, by share of the others' fall


def gather(files: Sequence[Path], table: Path) -> None:
    """Write the losses of all snapshots as one table, and print which of them are unusual.

    Parameters
    ----------
    files : JSON of each snapshot, {"step", "loss"}. table : CSV; step, loss in nats, out_of_place.
    """
    rows = [read_json(path) for path in files]
    losses = pd.DataFrame(rows).sort_values("step", ignore_index=True)
    losses["out_of_place"] = out_of_place(losses["loss"].to_numpy())
    write_table(table, losses)
    for line in doubts(losses):
        print(f"advice: {line}")


def doubts(table: pd.DataFrame) -> list[str]:
    """A sentence for each snapshot in the table of `gather` that is out of place."""
    kept, apart = table[~table["out_of_place"]], table[table["out_of_place"]]
    lines = []
    for step, loss in apart[["step", "loss"]].itertuples(index=False):
        near = pd.concat([kept[kept["step"] < step].tail(1), kept[kept["step"] > step].head(1)])
        around = [f"{row.loss:.2f} at step {row.step}" for row in near.itertuples()]
        lines.append(
            f"snapshots: the held-out loss of step {step}, {loss:.2f}, is far from those of its "
            f"neighbours ({', '.join(around)}); it may hold the weights of another step: leave it "
            "out"
        )
    return lines


def out_of_place(loss: np.ndarray) -> np.ndarray:
    """Which of the losses (n,), in the order of training, do not fit between their neighbours.

    A loss that falls, rises or stays level does so from each snapshot to the next. So it is between
    those before and after it, or near the line through the two before or the two after, as at the
    bottom of a curve that turns. The tolerance for noise is 0.1 nats, 2% of the whole range, or
    eight times the median distance, whichever is largest. The snapshot whose removal makes the
    others fit best is out of place; this is repeated until the others fit or a third is removed.
    The first and last have one neighbour each: they are out of place if the loss rises to or from
    them by more than a quarter of its fall over the others. With fewer than four snapshots none is.
    """
    loss = np.asarray(loss, float)
    kept, known = list(range(len(loss))), np.isfinite(loss).all()
    if len(loss) < LEAST_SNAPSHOTS or not known:
        return np.zeros(len(loss), bool)
    bound = max(LEAST, OF_RANGE * np.ptp(loss), OF_NOISE * float(np.median(_beyond(loss))))
    fewest = max(LEAST_SNAPSHOTS - 1, len(loss) - max(1, len(loss) // 3))
    while len(kept) > fewest and _misfit(loss[kept], bound) > 0:
        rest = [_misfit(np.delete(loss[kept], i), bound) for i in range(len(kept))]
        # If two are equally good, take the one farther from the line between its neighbours.
        best = np.flatnonzero(np.isclose(rest, min(rest)))
        away = [_from_line(loss[kept], int(i)) for i in best]
        del kept[int(best[int(np.argmax(away))])]
    apart = np.ones(len(loss), bool)
    apart[kept] = False
    return apart


def _beyond(loss: np.ndarray) -> np.ndarray:
    """How far each inner loss is outside what its neighbours suggest, (n − 2,)."""
    before, own, after = loss[:-2], loss[1:-1], loss[2:]
    led, come = before.copy(), after.copy()
    led[1:] += loss[1:-2] - loss[:-3]
    come[:-1] += loss[2:-1] - loss[3:]
    expected = np.stack([before, after, led, come])
    return np.maximum(np.maximum(own - expected.max(0), expected.min(0) - own), 0)


def _misfit(loss: np.ndarray, bound: float) -> float:
    """The sum of all deviations beyond the bounds."""
    inner = np.maximum(_beyond(loss) - bound, 0).sum()
    first = loss[1] - loss[0] - max(bound, OF_END * (loss[1:].max() - loss[1:].min()))
    last = loss[-1] - loss[-2] - max(bound, OF_END * (loss[:-1].max() - loss[:-1].min()))
    falls = loss[1] - loss[-1] > (loss[1] - loss[0]) / 2  # false if all of it rises
    return float(inner + max(first, 0) * falls + max(last, 0))


def _from_line(loss: np.ndarray, i: int) -> float:
    """The distance of a loss from the mean of its neighbours."""
    return float(abs(loss[i] - loss[[max(i - 1, 0), min(i + 1, len(loss) - 1)]].mean()))

"""Several trainings fed from one stream of rows: every snapshot runs once for all of them.

    text ─> windows of rows ─> reader: principal coordinates ─> dictionary, seed 0
            (streamed.py)  │                                 └> dictionary, seed 1
                           └─> reader: all dimensions ──────> dictionary of another kind ...

Each training takes the same batches in the same order as it would on its own: step s has the rows
from s·B on, with its own batch size B. The training whose next batch begins earliest always takes
the next step, so that all of them stay within the windows in memory and each window is computed
once. A training that starts later, such as an added dictionary, catches up first. On one CPU thread
the results are identical, bit for bit, to those of separate trainings.

Several processes may share the trainings: each runs a part of the snapshots, and holds a share of
the features of every training (ranks.py).

One file holds the states of all trainings at the same moment. A result is kept in a separate folder
as soon as its training is over.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ontogeny import devices
from ontogeny.activations.rows import RowPaths
from ontogeny.activations.sizes import STREAMED_WINDOWS
from ontogeny.activations.streamed import Streamed
from ontogeny.crosscoder.data import Data
from ontogeny.crosscoder.ranks import Ranks
from ontogeny.crosscoder.state import Saver, damaged
from ontogeny.crosscoder.train import Session
from ontogeny.settings import Settings


@dataclass(frozen=True)
class Member:
    """One training of a stream.

    Attributes
    ----------
    crosscoder, seed : the training. paths : of its rows.
    output : folder for its result, named by a digest of everything that it depends on.
    """

    crosscoder: str
    seed: int
    paths: RowPaths
    output: Path

    @property
    def key(self) -> str:
        """Key of the training's state in the common file."""
        return self.output.name


def train(
    settings: Settings,
    members: Sequence[Member],
    state: str | Path,
    ranks: Ranks | None = None,
) -> None:
    """Train several crosscoders on the same rows.

    Parameters
    ----------
    settings : the whole experiment; activations.mode is streamed.
    members : have the same sites and precision. state : folder of their states, for resuming.
    ranks : this process among those that share the trainings.

    Raises
    ------
    InputError : the inputs of a training do not fit, or a loss is not finite.
    """
    state, device, ranks = Path(state), devices.choose(settings.device), ranks or Ranks()
    if device.type == "cuda":
        first = settings.all_crosscoders[members[0].crosscoder]
        torch.set_float32_matmul_precision(first.precision)
    data = _data(settings, members, device, ranks)
    _share(data.values())
    wrong = damaged(state)
    if wrong and ranks.rank == 0:
        print(wrong, file=sys.stderr)
    sessions: dict[Member, Session] = {}
    for member in members:
        own = Ranks(ranks.rank, ranks.size, ranks.room)
        session = Session(settings, member.crosscoder, member.seed, data[member.crosscoder], own)
        if not wrong:
            session.now.resume(state, member.key)
        session.start()
        sessions[member] = session
    with Saver(state) as saver:
        while sessions:
            member, session = min(sessions.items(), key=lambda each: each[1].row)
            looked = session.step(state)
            if session.over:
                session.finish(member.output)
                del sessions[member]
                if sessions:
                    _share({id(each.data): each.data for each in sessions.values()}.values())
            # Ranks reach this point at different times, so the first one decides.
            elif looked and ranks.agree(ranks.rank > 0 or saver.due, device):
                saver.save({member.key: session.now for member, session in sessions.items()})


def _data(
    settings: Settings, members: Sequence[Member], device: torch.device, ranks: Ranks
) -> dict[str, Data]:
    """The rows of each crosscoder, all from the same stream."""
    data: dict[str, Data] = {}
    last: Data | None = None
    for member in members:
        if member.crosscoder not in data:
            c = settings.all_crosscoders[member.crosscoder]
            data[member.crosscoder] = last = Data(settings, c, member.paths, device, last, ranks)
    return data


def _reader(data: Data) -> Streamed:
    (reader,) = data.sources
    assert isinstance(reader, Streamed), "a stream needs activations.mode: streamed"
    return reader


def _share(trained: Collection[Data]) -> None:
    """Compute each window for all readers, and hold it as long as one of them needs it.

    A batch may begin in the first window held and end several windows later.
    """
    readers = [_reader(data) for data in trained]
    stream = readers[0].stream
    starts = stream.order.starts
    least = max(1, int((starts[1:] - starts[:-1]).min()))
    stream.readers = readers
    stream.windows = STREAMED_WINDOWS + (max(data.c.batch_rows for data in trained) - 1) // least

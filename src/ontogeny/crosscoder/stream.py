"""Several trainings fed from one stream of rows: every snapshot runs once for all of them.

    text ─> windows of rows ─> reader: principal coordinates ─> dictionary, seed 0
            (streamed.py)  │                                 └> dictionary, seed 1
                           └─> reader: all dimensions ──────> dictionary of another kind ...

A training takes the batches that it would take alone, of its own size, in the same order: step s
has the rows from s·B on. The training whose next batch begins first is always the next to take a
step, so that all of them work within the windows that are held, and each window is computed once.
One that begins later, such as a dictionary that was added, catches up first. On one thread of a CPU
each ends bit for bit where it would have ended alone.

One file holds the states of all: they are of one moment, and any of them can be gone on from. A
result is kept in a folder of its own as soon as a training is over.
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
from ontogeny.activations.streamed import Stream, Streamed
from ontogeny.crosscoder.data import Data
from ontogeny.crosscoder.state import Saver, damaged
from ontogeny.crosscoder.train import Session
from ontogeny.settings import Settings


@dataclass(frozen=True)
class Member:
    """One training of a stream.

    Attributes
    ----------
    crosscoder, seed : which. paths : where its rows lie.
    output : folder that its result is kept in, whose name is a digest of all that it depends on.
    """

    crosscoder: str
    seed: int
    paths: RowPaths
    output: Path

    @property
    def key(self) -> str:
        """Of its state among those of the others."""
        return self.output.name


def train(settings: Settings, members: Sequence[Member], state: str | Path) -> None:
    """Train several crosscoders on the same rows.

    Parameters
    ----------
    settings : the whole experiment; activations.mode is streamed.
    members : of the same sites and precision. state : folder of the states of all, for resuming.

    Raises
    ------
    InputError : inputs that do not fit, or a loss that is not finite, of any of them.
    """
    state, device = Path(state), devices.choose(settings.device)
    if device.type == "cuda":
        first = settings.all_crosscoders[members[0].crosscoder]
        torch.set_float32_matmul_precision(first.precision)
    data = _data(settings, members, device)
    _share(data.values())
    wrong = damaged(state)
    if wrong:
        print(wrong, file=sys.stderr)
    sessions: dict[Member, Session] = {}
    for member in members:
        session = Session(settings, member.crosscoder, member.seed, data[member.crosscoder])
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
            elif looked and saver.due:
                saver.save({member.key: session.now for member, session in sessions.items()})


def _data(settings: Settings, members: Sequence[Member], device: torch.device) -> dict[str, Data]:
    """The rows of each crosscoder, all of one stream."""
    data: dict[str, Data] = {}
    stream: Stream | None = None
    for member in members:
        if member.crosscoder not in data:
            c = settings.all_crosscoders[member.crosscoder]
            data[member.crosscoder] = Data(settings, c, member.paths, device, stream)
            stream = _reader(data[member.crosscoder]).stream
    return data


def _reader(data: Data) -> Streamed:
    (reader,) = data.sources
    assert isinstance(reader, Streamed), "a stream needs activations.mode: streamed"
    return reader


def _share(trained: Collection[Data]) -> None:
    """Have each window computed for all readers, and held as long as one of them needs it.

    A batch may begin in the first window that is held, and end some windows later.
    """
    readers = [_reader(data) for data in trained]
    stream = readers[0].stream
    starts = stream.order.starts
    least = max(1, int((starts[1:] - starts[:-1]).min()))
    stream.readers = readers
    stream.windows = STREAMED_WINDOWS + (max(data.c.batch_rows for data in trained) - 1) // least

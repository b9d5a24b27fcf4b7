"""Features on texts that were not extracted: each snapshot is loaded once and reads all texts.

A pre-activation is a sum over input sites (readout.py), so each snapshot's share is added to the
sum, and its activations are then discarded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ontogeny import devices
from ontogeny.crosscoder.readout import Readout
from ontogeny.settings import Settings
from ontogeny.snapshots import sites

Key = tuple[int, str]  # (layer, stream)


@dataclass(frozen=True)
class Reader:
    """A snapshot's model, with the part of some features' encoders that reads each of its sites.

    Attributes
    ----------
    model : up to the last layer that is read.
    """

    model: nn.Module
    _readout: Readout
    _sites: dict[Key, tuple[int, Tensor]]  # index of the input site, and its E
    _stored: torch.dtype

    @property
    def keys(self) -> list[Key]:
        """The (layer, stream) pairs that are read."""
        return list(self._sites)

    def share(self, ids: Tensor, row: Tensor, which: Tensor, end: Tensor | None = None) -> Tensor:
        """This snapshot's share of pre-activations, (P,): Σ over its sites of (ã − T[x] − μ)·E.

        Parameters
        ----------
        ids : (B, T) texts, on the model's device. row : (P,) index of each pair's text.
        which : (P,) index of its feature in the readout.
        end : (B,) the position that is read in each text; the last one if not given.
        """
        values = sites.read(self.model, ids, self.keys)
        text = torch.arange(len(ids), device=ids.device)
        end = end if end is not None else torch.full_like(text, -1)
        token, total = ids[text, end], torch.zeros(len(row), device=ids.device)
        for key, (n, E) in self._sites.items():
            x = values[key][text, end].to(self._stored).float() * self._readout.scales[n]
            x -= self._readout.centre(n, token)
            total += (x[row] * E[which]).sum(1)
        return total


def readers(settings: Settings, readout: Readout, snapshots: Path) -> Iterator[Reader]:
    """Yield a reader for each snapshot in turn; only one is in memory at a time.

    Parameters
    ----------
    snapshots : folder.
    """
    device = devices.choose(settings.device)
    dtype = devices.precision(settings.activations.precision, device)
    by_snapshot: dict[int, list[int]] = {}
    for n, site in enumerate(readout.inputs):
        by_snapshot.setdefault(site[0], []).append(n)
    for step, numbers in by_snapshot.items():
        sites_of = {}
        for n in numbers:
            _, layer, stream = readout.inputs[n]
            sites_of[layer, stream] = n, readout.weights(n)
        model = sites.load_model(
            snapshots / f"step{step}",
            device,
            dtype,
            settings.snapshots.remote_code,
            last_layer=max(layer for layer, _ in sites_of),
        )
        yield Reader(model, readout, sites_of, getattr(torch, settings.activations.dtype))
        del model

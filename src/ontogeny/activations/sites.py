"""Sites, and the names of their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ontogeny.files import digest_value
from ontogeny.settings.sections import Crosscoder, Sites

STACK = "stack.h5"  # in the folder of a layer's stream


@dataclass(frozen=True)
class Site:
    """A place in one snapshot whose activations a crosscoder reads or writes."""

    snapshot: int
    """Training step of the snapshot."""
    layer: int
    stream: str

    @property
    def name(self) -> str:
        """'residual.3/step512', which is also the site's path under the activations (and .h5)."""
        return f"{folder_name(self.layer, self.stream)}/step{self.snapshot}"


def expand(sites: Sites, steps: list[int]) -> list[Site]:
    """All sites of a settings' section, layer by layer, with each layer's snapshots in order."""
    chosen = steps if sites.snapshots == "all" else sorted(sites.snapshots)
    return [
        Site(step, layer, stream)
        for layer in sites.layers
        for stream in sites.streams
        for step in chosen
    ]


def folder_name(layer: int, stream: str) -> str:
    """Name of the folder that holds the files of a layer's stream."""
    return f"{stream}.{layer}"


def _name_of(sites: Sites) -> str:
    streams = [folder_name(layer, stream) for layer in sites.layers for stream in sites.streams]
    chosen = "" if sites.snapshots == "all" else f".{digest_value(sites.snapshots)[:8]}"
    return "-".join(streams) + chosen


def basis_name(c: Crosscoder) -> str:
    """Name of the basis shared by crosscoders with the same input sites and token table."""
    return _name_of(c.inputs) + ("" if not c.token_table else f"-table-{c.scale}")


def stream_name(c: Crosscoder) -> str:
    """Name of the stream shared by crosscoders that are trained on the same files.

    The files are those of their sites, basis and token table. The precision is also part of the
    name, since a process can only have one.
    """
    outputs = "" if c.outputs in (None, c.inputs) else f"-to-{_name_of(c.written)}"
    files = "-full" if c.basis == "full" else ""
    usual = c.precision == Crosscoder.model_fields["precision"].default
    return basis_name(c) + outputs + files + ("" if usual else f"-{c.precision}")


def rows_path(path: str | Path, shard: int) -> Path:
    """The file with a shard's training rows, next to a snapshot's file."""
    return Path(path).with_suffix(f".rows{shard}.h5")

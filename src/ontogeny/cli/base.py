"""What all commands share: the group they belong to, and options that many have."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ontogeny import __version__, gpus
from ontogeny import settings as settings_module
from ontogeny.files import InputError
from ontogeny.settings import Settings, SettingsError

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


class Group(click.Group):
    """A group whose commands end with one line, not a traceback, on bad input."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (InputError, SettingsError) as error:
            for line in str(error).splitlines():
                print(f"ontogeny: {line}", file=sys.stderr)
            ctx.exit(1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Watch concepts grow inside a language model while it trains."""


def path(name: str, kind: click.Path = FILE) -> Callable[..., Any]:
    """A required path option."""
    return click.option(f"--{name}", type=kind, required=True)


def config(function: Callable[..., Any]) -> Callable[..., Any]:
    """The --config option, handed on as validated Settings."""

    def parse(_: Any, __: Any, value: Path) -> Settings:
        return settings_module.load(value)

    return click.option("--config", "s", type=FILE, required=True, callback=parse)(function)


def take_gpus(s: Settings, count: int = 1) -> None:
    """Take so many of this machine's GPUs for this process, before CUDA starts."""
    name = gpus.take(s.device, count)
    if name is not None:
        print(f"on GPU {name}", file=sys.stderr)


def config_on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `config`, and of several GPUs this process takes one for itself before torch starts."""

    def parse(_: Any, __: Any, value: Path) -> Settings:
        s = settings_module.load(value)
        take_gpus(s)
        return s

    option = click.option("--config", "s", type=FILE, required=True, callback=parse, is_eager=True)
    return option(function)


def threads(function: Callable[..., Any]) -> Callable[..., Any]:
    """The --threads option, obeyed before the command runs."""

    def obey(_: Any, __: Any, value: int) -> None:
        from ontogeny import devices

        devices.use_threads(value)
        devices.keep_memory()

    return click.option(
        "--threads", type=click.IntRange(1), default=1, expose_value=False, callback=obey
    )(function)


def places(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where a crosscoder's data lie, handed on as rows.RowPaths."""

    @functools.wraps(function)  # with the options that it has already
    def gather(
        activations: Path,
        basis: Path | None,
        projected: tuple[Path, ...],
        snapshots: Path | None,
        tokens: Path | None,
        **rest: Any,
    ) -> Any:
        from ontogeny.activations.rows import RowPaths

        paths = RowPaths(activations, basis, projected, snapshots, tokens)
        return function(places=paths, **rest)

    for option in (
        click.option("--tokens", type=FILE, help="Needed where rows are streamed."),
        click.option("--snapshots", type=FOLDER, help="Needed where rows are streamed."),
        click.option("--projected", type=FILE, multiple=True, help="Projected rows, by shard."),
        click.option("--basis", type=FILE, help="The basis file, with basis: principal."),
        click.option("--activations", type=FOLDER, required=True),
    ):
        gather = option(gather)
    return gather

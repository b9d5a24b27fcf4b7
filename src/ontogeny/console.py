"""What commands share: the experiment, its device, and how they end.

Anything that cannot be done is reported as one line per fault; a traceback means a bug in Ontogeny.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ontogeny import gpus, process
from ontogeny.experiment import Experiment
from ontogeny.files import InputError, explained, failure, one_line
from ontogeny.settings import SettingsError


class Group(click.Group):
    """A group that includes declared commands; bad input ends with one line, without a traceback.

    Parameters
    ----------
    declared : makes the commands that follow from declarations. first : names of the commands for
        people, which help lists first; the others are steps of the workflow.
    """

    def __init__(
        self,
        *args: Any,
        declared: Callable[[], list[click.Command]],
        first: Sequence[str] = (),
        **more: Any,
    ) -> None:
        super().__init__(*args, **more)
        self._first = first
        self._declared: Callable[[], list[click.Command]] | None = declared

    def _declare(self) -> None:
        if self._declared is not None:
            made, self._declared = self._declared(), None
            for command in made:
                self.add_command(command)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name."""
        self._declare()
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        self._declare()
        return super().list_commands(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, those that people call before the steps of the workflow."""
        names = self.list_commands(ctx)
        for title, part in (
            ("Commands", [name for name in self._first if name in names]),
            ("Steps, which `ontogeny run` calls", [n for n in names if n not in self._first]),
        ):
            found = [(name, self.get_command(ctx, name)) for name in part]
            room = formatter.width - 6 - max(map(len, part), default=0)
            with formatter.section(title):
                formatter.write_dl(
                    [(name, command.get_short_help_str(room)) for name, command in found if command]
                )

    def main(self, args: Sequence[str] | None = None, *more: Any, **named: Any) -> Any:
        """Run the command line."""
        process.begin()
        try:
            with process.interruptible():
                return super().main(args, *more, **named)
        except Exception as error:
            reasons = _reasons(error, sys.argv[1:] if args is None else args)
            if not reasons:
                raise
            for line in reasons:
                print(f"ontogeny: {line}", file=sys.stderr)
            sys.exit(1)


def _reasons(error: Exception, words: Sequence[str]) -> list[str]:
    """Lines that say why a command failed; none if only a traceback can explain it.

    An error in a library is often caused by a damaged file. This is checked last, as it takes time.
    """
    if isinstance(error, InputError | SettingsError):
        return str(error).splitlines()
    system = failure(error)
    if system is not None:
        return [explained(system)]
    if isinstance(error, MemoryError):
        return [f"out of memory ({one_line(error, 200)}); `ontogeny plan` shows what needs it"]
    from ontogeny import manifest

    folders = [Path(word) for word in words if Path(word, "config.yaml").is_file()]
    return [line for folder in folders for line in manifest.damaged(folder)]


def _open(_: Any, __: Any, folder: Path) -> Experiment:
    return Experiment.open(folder)


def _open_on_device(_: Any, __: Any, folder: Path) -> Experiment:
    """Open the experiment; if there are several GPUs, take one before torch starts."""
    experiment = Experiment.open(folder)
    take_gpus(experiment)
    return experiment


def take_gpus(experiment: Experiment, count: int = 1) -> None:
    """Reserve the given number of this machine's GPUs for this process, before CUDA starts."""
    name = gpus.take(experiment.settings.device, count)
    if name is not None:
        print(f"on GPU {name}", file=sys.stderr)


def of_experiment(function: Callable[..., Any], callback: Callable[..., Any] = _open) -> Any:
    """Add the argument EXPERIMENT, a folder such as results/default, and pass it on as its map."""
    return click.argument(
        "experiment",
        type=click.Path(path_type=Path, file_okay=False),
        callback=callback,
        is_eager=True,
    )(function)


def on_device(function: Callable[..., Any]) -> Any:
    """As `of_experiment`, for commands that use the device of the configuration."""
    return of_experiment(function, _open_on_device)


def threads(function: Callable[..., Any]) -> Any:
    """Add the option --threads, which takes effect before the command runs."""

    def obey(_: Any, __: Any, value: int) -> None:
        use_threads(value)

    return click.option(
        "--threads", type=click.IntRange(1), default=1, expose_value=False, callback=obey
    )(function)


def use_threads(count: int) -> None:
    """Fix the number of threads for the code that follows; this imports torch."""
    from ontogeny import devices

    devices.use_threads(count)
    devices.keep_memory()
    devices.find_compiled()

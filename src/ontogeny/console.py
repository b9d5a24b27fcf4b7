"""How commands end: what cannot be done is one line a fault, and a traceback is a fault of ours."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ontogeny import process
from ontogeny.files import InputError, explained, failure, one_line
from ontogeny.settings import SettingsError


class Group(click.Group):
    """A group with the commands of what is declared; bad input ends with one line, no traceback.

    Parameters
    ----------
    declared : makes the commands that are not written down here.
    """

    def __init__(
        self, *args: Any, declared: Callable[[], list[click.Command]], **more: Any
    ) -> None:
        super().__init__(*args, **more)
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
    """Lines that say why a command failed; none where only a traceback can tell.

    An error of a library is often that of a damaged file, which is looked for last: it takes time.
    """
    if isinstance(error, InputError | SettingsError):
        return str(error).splitlines()
    system = failure(error)
    if system is not None:
        return [explained(system)]
    if isinstance(error, MemoryError):
        return [f"no memory is left ({one_line(error, 200)}); `ontogeny plan` lists what takes it"]
    from ontogeny import manifest

    folders = [Path(word) for word in words if Path(word, "config.yaml").is_file()]
    return [line for folder in folders for line in manifest.damaged(folder)]

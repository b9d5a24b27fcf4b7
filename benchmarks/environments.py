"""Environments of other people's libraries, each made from its pinned list in peers/.

    python -m benchmarks.environments llamascopium saelens

An environment stands under results/benchmarks/envs and is named by the digest of its list: a
changed list is another environment. Benchmarks make those that they need; the tests of
tests/exchange/test_exchange.py use those that there are.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import click

PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path("results/benchmarks/envs")


def folder(peer: str, where: Path = ENVIRONMENTS) -> Path:
    """Where a peer's environment stands, or is to stand."""
    listed = (PEERS / f"{peer}.txt").read_bytes()
    return where / f"{peer}-{hashlib.sha256(listed).hexdigest()[:12]}"


def python_of(peer: str, where: Path = ENVIRONMENTS) -> Path | None:
    """The Python of a peer's environment; None where it has not been made."""
    found = folder(peer, where)
    # Not resolved: an environment is found by the link's own place.
    return (found / "bin" / "python").absolute() if (found / ".complete").exists() else None


def make(peer: str, where: Path = ENVIRONMENTS) -> Path:
    """The Python of a peer's environment, made if it is not there."""
    there = python_of(peer, where)
    if there:
        return there
    made = folder(peer, where)
    click.echo(f"making {peer}'s environment in {made}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", made], check=True)
    pip = [made / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "--no-deps", "-r", PEERS / f"{peer}.txt"], check=True)
    (made / ".complete").touch()
    return (made / "bin" / "python").absolute()


@click.command()
@click.argument(
    "peers", nargs=-1, required=True, type=click.Choice(sorted(p.stem for p in PEERS.glob("*.txt")))
)
def main(peers: tuple[str, ...]) -> None:
    """Make the environments of PEERS."""
    for peer in peers:
        click.echo(make(peer))


if __name__ == "__main__":
    main()

"""Does a decoder norm mean presence? Every loss, trained on activations whose truth is known.

    python -m benchmarks.presence                      (an hour on 2 cores; goes on if stopped)
    python -m benchmarks.presence --only paper,relu    some losses alone
    python -m benchmarks.presence --small              a few steps of each, in a minute: no result
    python -m benchmarks.presence --draw               page and figure again, from the rows

Planted worlds (planted.py) are written as activations of an ordinary experiment; the project's own
trainer trains a crosscoder on them with each loss, and truth.py holds what it learned against the
truth. The paper's library trains on the same rows by its own code, in its own environment, which
is made first where it is not there. What is trained and measured is kept under
results/benchmarks/presence by a digest of settings and code, so that a second call does only what
is missing. Rows go to benchmarks/results/presence.json, table and figure to docs/presence.md.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import torch

from benchmarks import environments, planted, presence_page, truth
from ontogeny import devices, settings
from ontogeny.activations import extract, store
from ontogeny.activations.rows import Cached, HeldOut, RowPaths, pieces
from ontogeny.activations.sites import STACK, Site, folder_name, rows_path
from ontogeny.crosscoder import fidelity, train
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.exchange import llamascopium
from ontogeny.files import digest_file, digest_value, whole, write_json

HERE = Path(__file__).parent
ROWS = HERE / "results" / "presence.json"
WORK = Path("results/benchmarks/presence")
STEPS = list(range(planted.N))  # the snapshots' training steps
SITES = [Site(step, 0, "residual") for step in STEPS]
PLANTED, MEASURES = (digest_file(HERE / name) for name in ("planted.py", "truth.py"))
K = 8  # the planted worlds have 8 active: 5 features and the 3 dense directions
COMMON: dict[str, Any] = {
    "inputs": {"layers": [0]}, "basis": "full", "gate": "snapshot", "features": 512,
    "batch_rows": 512, "steps": 2500, "learning_rate": 2e-3, "threads": 1,
}  # fmt: skip
# λ is held, not steered to an L0: a trained threshold keeps L0 near the truth's whatever λ is, and
# steering towards more switches the penalty off.
JUMPRELU: dict[str, Any] = {"activation": "jumprelu", "sparsity": 0.1}
PER_SNAPSHOT = JUMPRELU | {"penalty": "per_snapshot", "sparsity": 0.12}
TOPK: dict[str, Any] = {"activation": "batch_topk", "k": K}
SHORT = 1000  # steps of what is as short as the paper's library, whose steps are slow
PEER = "llamascopium"


@dataclass(frozen=True)
class Loss:
    """A row before it is measured.

    Attributes
    ----------
    name : of the row. label : for people. own : settings beside COMMON.
    """

    name: str
    label: str
    own: dict[str, Any]
    seeds: Sequence[int] = (0, 1, 2)
    common: dict[str, Any] = field(default_factory=lambda: COMMON)
    rows: tuple[int, int] = (planted.TRAIN_ROWS, planted.HELD_OUT_ROWS)

    @property
    def settings(self) -> dict[str, Any]:
        """All that is told to the trainer."""
        return self.common | self.own


DENSE_START = {"start_active": None}
LOSSES = [
    Loss("paper", "paper's loss", JUMPRELU | DENSE_START),
    Loss("paper_published", "paper's loss, λ 0.3", JUMPRELU | DENSE_START | {"sparsity": 0.3}),
    Loss("paper_sparse_start", "paper's loss, sparse start", JUMPRELU),
    Loss("paper_sparse_strong", "paper's loss, sparse start, λ 0.3", JUMPRELU | {"sparsity": 0.3}),
    Loss("paper_refit", "paper's loss, sparse start, refit", JUMPRELU | {"refit": True}),
    Loss("per_snapshot", "penalty per snapshot", PER_SNAPSHOT),
    Loss("per_snapshot_refit", "penalty per snapshot, refit", PER_SNAPSHOT | {"refit": True}),
    Loss("batch_topk_feature", "BatchTopK, gate per feature", TOPK | {"gate": "feature"}),
    Loss("batch_topk_snapshot", "BatchTopK, gate per snapshot", TOPK),
    Loss(
        "batch_topk_k_start", f"BatchTopK per snapshot, k {3 * K} to {K}", TOPK | {"k_start": 3 * K}
    ),
    Loss("batch_topk_k10", "BatchTopK per snapshot, k 10", TOPK | {"k": 10}),
    Loss("relu", "ReLU with L1", {"activation": "relu", "gate": "feature", "sparsity": 2.0}),
    Loss("paper_short", "paper's loss, short", JUMPRELU | DENSE_START | {"steps": SHORT}, (0, 1)),
    Loss(PEER, "llamascopium, short", {"sparsity": 0.1, "steps": SHORT}, (0, 1)),
]


def small(loss: Loss) -> Loss:
    """The same with few rows, features and steps: to see that all of it runs."""
    few = {"features": 64, "steps": 40, "batch_rows": 128, "dead_after_rows": 2560}
    own = {key: value for key, value in loss.own.items() if key != "steps"}
    return replace(loss, own=own, seeds=(0,), common=COMMON | few, rows=(1024, 512))


def activations(world: planted.World, seed: int, folder: Path) -> None:
    """Write a world's rows as an experiment's activations, as the stage `extract` leaves them."""
    place = folder / folder_name(0, "residual")
    place.mkdir(parents=True)
    paths = [place / f"step{step}.h5" for step in STEPS]
    shared = {"layer": 0, "stream": "residual", "dtype": "float16", "seed": 0}
    shared |= {"tokens": f"planted {seed}", "shard_rows": [world.train.shape[1]]}
    position = np.zeros((world.held_out.shape[1], 2), np.uint32)
    position[:, 1] = np.arange(len(position))
    for step, path in zip(STEPS, paths, strict=True):
        train_rows, held_out = world.train[step], world.held_out[step]
        norms = extract.norms(torch.from_numpy(train_rows))
        about = shared | {"step": step} | norms
        with h5py.File(path, "w") as file, h5py.File(rows_path(path, 0), "w") as own:
            for target, group, rows in ((own, "", train_rows), (file, "held_out/", held_out)):
                writer = store.Writer(
                    target, f"{group}activations", len(rows), rows.shape[1], "float16"
                )
                writer.write(rows)
                token = np.tile(np.array([[-1, 0]], np.int32), (len(rows), 1))  # rows of no text
                store.Writer(target, f"{group}token", len(rows), 2, "int32").write(token)
            file["held_out/position"] = position
            store.describe(own, about)
            store.describe(file, about)
    store.stack(paths, STEPS, place / STACK, scale="centred")


def world_of(loss: Loss, seed: int) -> tuple[planted.World, Path]:
    """A seed's world, and the folder of its activations, written where they are not there."""
    world = planted.make(seed, *loss.rows)
    folder = WORK / f"world-{digest_value([PLANTED, seed, loss.rows])}"
    if not folder.exists():
        with whole(folder) as draft:
            activations(world, seed, draft)
    return world, folder


def configuration(loss: Loss) -> settings.Settings:
    """The experiment that has one crosscoder, the loss's."""
    return settings.load(
        {
            "name": "presence",
            "device": "cpu",
            "snapshots": {"steps": STEPS, "pretrain": {}},
            "activations": {"layers": [0], "scale": "centred"},
            "crosscoders": {loss.name: loss.settings},
            "primary": loss.name,
            "analyses": [],
        }
    )


def trained(loss: Loss, seed: int, rows: Path, folder: Path) -> Crosscoder:
    """The crosscoder of a loss and seed, trained where it is not there."""
    if not (folder / "seconds.json").exists():
        began = time.monotonic()
        if loss.name == PEER:
            _by_peer(loss, seed, rows, folder)
        else:
            experiment = configuration(loss)
            train.train(experiment, loss.name, seed, RowPaths(rows), folder, folder / "state")
        write_json(folder / "seconds.json", time.monotonic() - began)
    return Crosscoder.load(folder) if loss.name != PEER else _of_peer(folder, rows)


def _by_peer(loss: Loss, seed: int, rows: Path, folder: Path) -> None:
    """Train by the paper's library on the same rows, each site's mean taken off."""
    python = environments.make(PEER)
    folder.mkdir(parents=True, exist_ok=True)
    given = Cached(rows, SITES)
    x = given.read(0, given.rows).reshape(given.rows, -1)
    mean = x.mean(0)
    np.save(folder / "mean.npy", mean)
    np.save(folder / "rows.npy", x - mean)
    spec = loss.settings | {"seed": seed, "sites": len(SITES), "folder": str(folder.resolve())}
    write_json(folder / "spec.json", spec)
    worker = HERE / "workers" / "llamascopium_training.py"
    done = subprocess.run([python, worker, folder / "spec.json"], capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{PEER}, seed {seed}: failed\n{done.stderr[-3000:]}")
    (folder / "rows.npy").unlink()


def _of_peer(folder: Path, rows: Path) -> Crosscoder:
    """What the paper's library trained, for rows with their mean: biases take it up."""
    found = llamascopium.read(folder, STEPS, 0, "residual")
    mean = torch.from_numpy(np.load(folder / "mean.npy"))
    found.weights.b_enc -= found.weights.W_enc @ mean
    found.b_dec += mean.view_as(found.b_dec)
    found.about = replace(found.about, tokens=Cached(rows, SITES).tokens)
    return found


def codes_of(crosscoder: Crosscoder, rows: Path) -> np.ndarray:
    """(held-out rows, F) activations, of a feature whose gates differ at whichever is open."""
    found = []
    for _, piece in pieces(HeldOut(rows, SITES), 500):
        f = crosscoder.encode(torch.from_numpy(piece))
        found.append((f if f.ndim == 2 else f.amax(2)).numpy())
    return np.concatenate(found)


def result(loss: Loss, seed: int) -> dict[str, Any]:
    """A training's measures, from where they are kept."""
    folder = WORK / digest_value([PLANTED, loss.name, loss.settings, loss.rows, seed])
    kept = folder / f"measures-{MEASURES[:8]}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    world, rows = world_of(loss, seed)
    crosscoder = trained(loss, seed, rows, folder)
    by_site, _, _ = fidelity.explained(crosscoder, rows, truth.FAINT)
    found = truth.measure(crosscoder.W_dec.numpy(), codes_of(crosscoder, rows), world) | {
        "explained_variance": float(by_site["explained_variance"].mean()),
        "explained_variance_least": float(by_site["explained_variance"].min()),
        "l0": float(by_site["l0"].mean()),
        "seconds": json.loads((folder / "seconds.json").read_text()),
    }
    write_json(kept, found)
    return found


def row(loss: Loss, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A loss's row: each number's mean, least and largest over seeds, and its value for each."""
    numbers = [key for key, value in results[0].items() if isinstance(value, int | float)]
    found: dict[str, Any] = {"loss": loss.name, "label": loss.label}
    for key in numbers:
        values = [float(one[key]) for one in results]
        found[key] = float(np.mean(values))
        found |= {f"{key}_low": min(values), f"{key}_high": max(values), f"{key}_seeds": values}
    for key in ("settling", "recoded"):
        found[key] = _means([one[key] for one in results])
    kinds = results[0]["by_kind"]
    found["by_kind"] = {  # what does not occur in a kind, such as an absence, is left out
        kind: {
            key: value
            for key, value in _means([one["by_kind"][kind] for one in results]).items()
            if not math.isnan(value)
        }
        for kind in kinds
    }
    for key in ("present", "absent"):
        found[key] = np.sum([one[key] for one in results], 0).tolist()
    found["relay"] = next((one["relay"] for one in results if one["relay"]), None)
    return found | {"settings": loss.settings, "seeds": list(loss.seeds)}


def _means(mappings: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in mappings])) for key in mappings[0]}


@click.command()
@click.option("--only", default="", help="Losses, by commas.")
@click.option("--small", "few", is_flag=True, help="A few steps of each, to see that all runs.")
@click.option("--draw", is_flag=True, help="Measure nothing; page and figure from the rows.")
@click.option("--list", "listed", is_flag=True, help="Name the losses.")
def main(only: str, few: bool, draw: bool, listed: bool) -> None:
    """Train every loss on planted worlds, and hold its decoder norms against the truth."""
    if draw:
        presence_page.write(json.loads(ROWS.read_text()))
        return
    wanted = set(filter(None, only.split(",")))
    names = [loss.name for loss in LOSSES]
    if unknown := wanted - set(names):
        raise click.ClickException(
            f"--only: no loss {', '.join(sorted(unknown))}; there are {', '.join(names)}"
        )
    chosen = [loss for loss in LOSSES if not wanted or loss.name in wanted]
    if listed:
        for loss in chosen:
            click.echo(f"{loss.name}: {loss.label}")
        return
    devices.use_threads(COMMON["threads"])
    devices.keep_memory()
    rows = []
    for loss in map(small, chosen) if few else chosen:
        results = []
        for seed in loss.seeds:
            results.append(result(loss, seed))
            one = results[-1]
            click.echo(
                f"{loss.name}, seed {seed}: F1 {one['f1']:.4f}, AUC {one['auc']:.4f}, found "
                f"{one['recovered']:.3f} (rare {one['recovered_rare']:.3f}), relays "
                f"{one['relays']} (frequent {one['relays_frequent']}), EV "
                f"{one['explained_variance']:.4f}, L0 {one['l0']:.1f}, {one['seconds']:.0f} s"
            )
        rows.append(row(loss, results))
    if few:
        return
    if wanted and ROWS.exists():
        rows += [r for r in json.loads(ROWS.read_text())["rows"] if r["loss"] not in wanted]
        rows.sort(key=lambda r: names.index(r["loss"]))
    found = {"about": about(), "rows": rows}
    write_json(ROWS, found)
    if missing := set(names) - {r["loss"] for r in rows}:
        click.echo(f"page not written: no row yet of {', '.join(sorted(missing))}")
        return
    presence_page.write(found)


def about() -> dict[str, Any]:
    """What was planted, from the first seed's world."""
    world = planted.make(0)
    there = [(world.codes[:, world.strength[:, s] > 0] > 0).sum(1).mean() for s in STEPS]
    return {
        "snapshots": planted.N,
        "width": planted.D,
        "true_features": len(world.kind),
        "kinds": planted.KINDS,
        "plain": list(truth.PLAIN),
        "rows": [planted.TRAIN_ROWS, planted.HELD_OUT_ROWS],
        "variance": dict(zip(("features", "dense", "noise"), world.variance, strict=True)),
        "active": float(np.mean(there)),
        "rare": float((world.frequency < planted.RARE).mean()),
        "bins": truth.BINS.tolist(),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }


if __name__ == "__main__":
    main()

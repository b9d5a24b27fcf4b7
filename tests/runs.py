"""A small experiment on a text file, whose commands tests run one at a time, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from click.testing import CliRunner
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ontogeny import settings as schema
from ontogeny.cli import main
from ontogeny.cost import bill, machines
from ontogeny.cost.sizes import Sizes, sizes
from ontogeny.experiment import Experiment
from ontogeny.settings import Settings

HERE = machines.Machine(Path(), 10**15, 10**15, 0, "CPU", False)
# Windows, pieces, matrices and dictionaries that are large beside a process.
MEDIUM = {
    "corpus.train_blocks": 1536, "corpus.held_out_blocks": 64, "corpus.pretrain_blocks": 16,
    "corpus.context": 64,
    "snapshots.steps": [0, 1, 2, 3, 4], "snapshots.pretrain.width": 128,
    "activations.window": 49152, "basis.dimensions": 256,
    "crosscoders.topk.features": 4096, "crosscoders.topk.batch_rows": 1024,
    "crosscoders.topk.steps": 4,
}  # fmt: skip


def small(text: Path, changes: dict[str, Any] | None = None) -> Settings:
    """Settings of a small experiment, in whose stages no part hides another."""
    base: dict[str, Any] = {
        "name": "small",
        "device": "cpu",
        "corpus": {
            "files": {"paths": [str(text)]}, "vocabulary": 300, "context": 32,
            "train_blocks": 96, "held_out_blocks": 12, "pretrain_blocks": 40,
        },
        "snapshots": {
            "steps": [0, 1, 3, 4],
            "pretrain": {"width": 16, "layers": 3, "heads": 2, "steps": 4, "batch_blocks": 8,
                         "warmup_steps": 1},
        },
        "activations": {"layers": [1], "window": 1024},
        "basis": {"dimensions": 24, "least_kept": 0},
        "crosscoders": {
            "topk": {"inputs": {"layers": [1]}, "features": 48, "k": 6, "batch_rows": 256,
                     "steps": 20, "aux_features": 0, "seeds": [0],
                     "basis": "principal"},
        },
        "primary": "topk",
        "analysis": {"spliced_blocks": 4, "copying_blocks": 4},
    }  # fmt: skip
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        section = base
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return schema.load(base)


class Run:
    """The small experiment in a folder, a command at a time."""

    def __init__(self, folder: Path, changes: dict[str, Any] | None = None) -> None:
        text = folder / "text.txt"
        rng = np.random.default_rng(0)
        words = ["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in range(2, 9)] * 9
        self.settings, self.results = small(text, changes), folder
        corpus = self.settings.corpus
        blocks = corpus.train_blocks + corpus.held_out_blocks + (corpus.pretrain_blocks or 0)
        count = int(1.3 * blocks * corpus.context)  # about a token a word
        text.write_text(" ".join(words[i] for i in rng.integers(0, len(words), count)))
        self.map = Experiment(folder / "small", self.settings)
        self.map.folder.mkdir(exist_ok=True)
        given = yaml.safe_dump(self.settings.model_dump(mode="json"))
        self.map.path("config").write_text(given)

    def command(self, stage: str, *words: object) -> None:
        """Run a command of the experiment."""
        arguments = [stage, str(self.map.folder), *map(str, words)]
        done = CliRunner().invoke(main, arguments)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output

    def stage(self, name: str) -> None:
        """Run all jobs of a stage; of several streams and seeds too."""
        sites = self.map.basis_of("topk")
        if name == "pretrain":
            self.command("pretrain")
            for step in self.map.steps:
                self.command("snapshot", step)
        elif name == "extract":
            for step in self.map.steps:
                self.command("extract", step)
            for site in self.map.sites:
                self.command("stack", site)
        elif name == "basis":
            self.command("basis", sites)
        elif name == "token_table":
            self.command("token_table", *self.map.sites)
        elif name == "project":
            self.command("project", sites, 0)
        elif name in ("train", "fidelity"):
            self.command(name, "topk", "--seed", 0)
        else:
            self.command(name)

    def stages(self, *names: str) -> None:
        """Run some stages."""
        for name in names:
            self.stage(name)

    def line(self, name: str) -> bill.Line:
        """What the bill says of a stage, before it has run: "train topk" as "train"."""
        planned = bill.bill(self.settings, self.results)
        return next(line for line in planned.lines if name in (line.name, line.stage))

    @property
    def sizes(self) -> Sizes:
        return sizes(self.map, HERE)


def counted(run: Callable[[], Any], known: dict[Any, Any] | None = None) -> float:
    """FLOPs that torch counts, attention as plain matrix products."""
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=known or {}) as counter,
    ):
        run()
    return counter.get_total_flops()


# Operations that torch does not count by itself.


def _sums_of_rows(out, starts, rows, by, table, out_shape=None, **_):
    """As if no gate were shut."""
    return 2 * rows[0] * out[0] * out[2]


def _bag(weight, indices, *_, out_shape=None, **__):
    return 2 * int(np.prod(indices)) * weight[1]


def known_operations() -> dict[Any, Any]:
    """The crosscoder's own operators, by their actual pairs."""
    from ontogeny.crosscoder import pairs  # noqa: F401  registers the operators

    return {
        torch.ops.ontogeny.sums_of_rows: _sums_of_rows,
        torch.ops.aten._embedding_bag: _bag,
        torch.ops.aten._embedding_bag_forward_only: _bag,
    }

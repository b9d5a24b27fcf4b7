"""The bill, held against real small runs: bytes, memory, floating point operations, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import RESULTS, ROOT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ontogeny import settings
from ontogeny.activations import basis, extract, feed, order, store, subspace
from ontogeny.activations.rows import Cached, HeldOut, RowPaths
from ontogeny.activations.sites import expand
from ontogeny.corpus import build
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder import fidelity, model, train
from ontogeny.crosscoder.optimizer import Adam
from ontogeny.files import InputError
from ontogeny.phases import levels
from ontogeny.plan import bill, cost, limits, machines, table
from ontogeny.snapshots import pretrain, sources

EXPERIMENTS = ROOT / "experiments"
HERE = machines.Machine(Path(), 10**15, 10**15, 0, "CPU", False)


def small(text: Path, changes: dict | None = None) -> settings.Settings:
    """A small experiment on a text file, in whose stages no part hides another."""
    base = {
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
        "basis": {"dimensions": 24},
        "crosscoders": {
            "topk": {"inputs": {"layers": [1]}, "features": 48, "k": 6, "batch_rows": 256,
                     "steps": 20, "aux_features": 0, "seeds": [0]},
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
    return settings.load(base)


class Run:
    """The small experiment, a stage at a time."""

    def __init__(self, folder: Path, changes: dict | None = None) -> None:
        text = folder / "text.txt"
        rng = np.random.default_rng(0)
        words = ["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in range(2, 9)] * 9
        self.s = small(text, changes)
        c = self.s.corpus
        blocks = c.train_blocks + c.held_out_blocks + (c.pretrain_blocks or 0)
        count = int(1.3 * blocks * c.context)  # about a token a word
        text.write_text(" ".join(words[i] for i in rng.integers(0, len(words), count)))
        self.results, self.home = folder, folder / "small"
        self.tokens = self.home / "corpus" / "tokens.h5"
        self.places = RowPaths(
            self.home / "activations",
            self.home / "basis" / "residual.1.h5",
            () if self.s.activations.mode == "streamed" else (self.projected,),
            self.home / "snapshots",
            self.tokens,
        )
        self.sites = expand(self.s.crosscoders["topk"].inputs, self.s.snapshots.chosen)

    @property
    def projected(self) -> Path:
        return self.home / "basis" / "residual.1.rows0.h5"

    def corpus(self) -> None:
        build.build(
            self.s.corpus, None, None, self.tokens, self.home / "corpus/tokenizer.json", True
        )

    def pretrain(self) -> None:
        kept = self.home / "pretrain" / "archive"
        pretrain.train(self.s, self.tokens, kept)
        for step in self.s.snapshots.chosen:
            sources.publish(self.s, step, self.home / f"snapshots/step{step}", kept)

    def extract(self) -> None:
        folder = self.home / "activations"
        for step in self.s.snapshots.chosen:
            extract.extract(self.s, self.home / f"snapshots/step{step}", step, self.tokens, folder)
        place = folder / "residual.1"
        files = [place / f"step{step}.h5" for step in self.s.snapshots.chosen]
        cached = self.s.activations.mode == "cached"
        store.stack(files, self.s.snapshots.chosen, place / "stack.h5", cached)

    def basis(self) -> None:
        cpu = torch.device("cpu")
        rows = feed.site_rows(self.s, self.sites, self.places, cpu)
        basis.build(self.s.basis, rows, self.places.basis, cpu)

    def project(self) -> None:
        rows = Cached(self.home / "activations", self.sites)
        subspace.project(self.places.basis, rows, 0, self.projected, torch.device("cpu"))

    def train(self) -> None:
        folder = self.home / "crosscoders/topk/seed0"
        train.train(self.s, "topk", 0, self.places, folder, self.home / "state")

    def fidelity(self) -> None:
        folder = self.home / "crosscoders/topk/seed0"
        fidelity.measure(
            self.s, folder, self.places, folder / "fidelity.csv", folder / "density.parquet"
        )

    def phases(self) -> None:
        folder = self.home / "phases"
        snapshots = self.home / "snapshots"
        levels.measure(
            self.s, snapshots, self.tokens, folder / "phases.csv", folder / "levels.json"
        )

    def stage(self, name: str) -> bill.Stage:
        """What the bill says of a stage, before it has run."""
        return bill.bill(self.s, self.results).stage(name)


# Sizes that cost.py repeats


def test_sizes_are_the_stages_own():
    blocks = np.arange(10)
    assert next(order.batches(blocks, 512)).size * 512 == cost.FORWARD_TOKENS
    assert fidelity.BATCH_TOKENS == levels.BATCH_TOKENS == cost.FORWARD_TOKENS
    assert basis.PIECE_ROWS == cost.BASIS_PIECE
    assert (fidelity.PIECE_ROWS, fidelity.PIECE_ENTRIES) == (
        cost.FIDELITY_PIECE, cost.FIDELITY_ENTRIES,
    )  # fmt: skip
    assert (levels.BATCH_ENTRIES, levels.NGRAM_TOKENS) == (cost.PHASE_ENTRIES, cost.NGRAM_TOKENS)
    assert fidelity.PCA_ROWS == cost.PCA_ROWS
    assert (train.LOG_EVERY, len(train.NORM_GRID)) == (cost.LOG_EVERY, cost.NORM_GRID)


# Floating point operations


def _segment_sums(out, start, source, values, X, out_shape=None, **_):
    return 2 * values[0] * X[1]


def _bag(weight, indices, *_, out_shape=None, **__):
    return 2 * int(np.prod(indices)) * weight[1]


def _row_sums(x, dims=(), *_, out_shape=None, **__):
    """Sums over the second dimension are those of products that were made elementwise before."""
    return 2 * x[0] * x[1] if len(x) == 2 and list(dims) == [1] else 0


KNOWN = {
    torch.ops.ontogeny.segment_sums: _segment_sums,
    torch.ops.aten._embedding_bag: _bag,
    torch.ops.aten._embedding_bag_forward_only: _bag,
    torch.ops.aten.sum: _row_sums,
}
IN_PLACE = {
    torch.ops.aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1]  # torch counts addmm alone
}


def counted(run, known=None) -> float:
    """FLOPs that torch counts, attention as plain matrix products."""
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=known or {}) as counter,
    ):
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("mode", ["cached", "streamed"])
def test_flops_of_the_stages(mode, tmp_path, plainly):
    run = Run(tmp_path, {"activations.mode": mode, "crosscoders.topk.steps": 30})
    run.corpus()
    kinds = {"extract": "extract", "pretrain": "pretrain", "phases": "phases"}
    kinds |= {"train": "train topk"}
    if mode == "cached":
        kinds |= {"project": "project residual.1"}
    for name in ("pretrain", "extract", "basis", "project", "train", "phases"):
        if name == "project" and mode == "streamed":
            continue
        planned = sum(w.flops for w in run.stage(kinds.get(name, "basis residual.1")).work)
        got = counted(getattr(run, name), KNOWN if name == "train" else None)
        if name == "basis":  # torch counts no eigenvectors, no QR
            z, _ = bill.sizes(run.s, run.results, HERE)
            n, R = 4 * 16, 24
            planned -= cost.eigen_flops(n) + cost.qr_flops(n, R)
            assert planned > cost.moments_flops(z.rows, n)
        assert got == pytest.approx(planned, rel=0.05), name
    if mode == "streamed":
        # 7,680 rows are two passes and a half of windows that are computed at each visit.
        z, _ = bill.sizes(run.s, run.results, HERE)
        assert z.windows == 3
        d = cost.Dictionary(run.s.crosscoders["topk"], 4, 4, 16, 24, 4)
        assert cost.streamed_positions(z, d) > 2.4 * z.positions


@pytest.mark.parametrize("windows", [1, 2])
def test_a_streamed_corpus_of_few_windows_is_computed_once(windows, tmp_path, plainly):
    run = Run(tmp_path, {"activations.mode": "streamed", "activations.window": 3072 // windows})
    for name in ("corpus", "pretrain", "extract", "basis"):
        getattr(run, name)()
    planned = run.stage("train topk").work[0]
    assert counted(run.train, KNOWN) == pytest.approx(planned.flops, rel=0.05)
    z, _ = bill.sizes(run.s, run.results, HERE)
    assert planned.forward == 3072 * 4 * z.token_flops
    assert planned.forward > 0.2 * planned.flops


def test_flops_of_streamed_rows_in_all_dimensions(tmp_path, plainly):
    run = Run(tmp_path, {"activations.mode": "streamed", "crosscoders.topk.basis": "full"})
    for name in ("corpus", "pretrain", "extract"):
        getattr(run, name)()
    planned = sum(w.flops for w in run.stage("train topk").work)
    assert counted(run.train, KNOWN) == pytest.approx(planned, rel=0.05)


def test_flops_of_randomised_directions(tmp_path, plainly):
    run = Run(tmp_path)
    for name in ("corpus", "pretrain", "extract"):
        getattr(run, name)()
    rows = Cached(run.home / "activations", run.sites)
    limit, cpu = 3000, torch.device("cpu")
    got = counted(lambda: basis.randomised(rows, limit, cpu, 20, 0), IN_PLACE)
    width = cost.search_width(64, 20, limit)
    assert width == 30
    assert got == pytest.approx(cost.randomised_flops(limit, 64, width), rel=0.05)
    got = counted(lambda: basis.moments(rows, limit, cpu))
    assert got == pytest.approx(cost.moments_flops(limit, 64), rel=0.05)


def dictionary(sites: int = 4, width: int = 10, dimensions: int | None = None, **changes):
    """A dictionary of some sizes, and its settings."""
    section = {
        "inputs": {"layers": [0]}, "basis": "principal" if dimensions else "full", "features": 48,
        "k": 5, "batch_rows": 64, "steps": 10, "aux_features": 24, "aux_k": 8,
    } | changes  # fmt: skip
    c = settings.Crosscoder.model_validate(section)
    return c, cost.Dictionary(c, sites, sites, width, dimensions, sites)


def weights_of(c, d, basis=None) -> tuple[model.Weights, model.Weights]:
    W = model.initial(d.inputs, d.outputs, c.features, d.width, basis, 0)
    return W, model.Weights(**{n: torch.zeros_like(t) for n, t in W.named().items()})


def step_of(c, d, native: bool, aux: int):
    """One step's loss and gradients on random rows, and how many pairs act."""
    generator = torch.Generator().manual_seed(0)
    W, G = weights_of(c, d)
    x = torch.randn(c.batch_rows, d.I, generator=generator)
    dead = torch.arange(aux)
    is_dead = torch.ones(aux, dtype=torch.bool)
    sample = torch.arange(max(1, round(c.batch_rows * c.threshold_share)))
    compute = train.make_loss(c, d.outputs, native)
    return compute(W, G, x, x, dead, is_dead, torch.tensor(0.1), sample)


@pytest.mark.parametrize(
    ("kind", "native"),
    [
        ({}, True),
        ({"gate": "snapshot", "aux_features": 0, "aux_k": 1}, True),
        ({"activation": "jumprelu"}, True),
        ({"activation": "jumprelu"}, False),
        ({"activation": "jumprelu", "gate": "snapshot"}, True),
        ({"activation": "relu"}, True),
    ],
)
def test_flops_of_a_step(kind, native):
    c, d = dictionary(**kind)
    aux = c.aux_features if c.activation == "batch_topk" else 0
    found = []
    got = counted(lambda: found.append(step_of(c, d, native, aux)), KNOWN)
    pairs = None
    if c.activation == "jumprelu" and d.pairs(not native):
        pairs = float(found[0].l0) * c.batch_rows * d.gates  # as many as do act
        assert pairs > 100
    dense, over = cost.step_flops(d, not native, aux, pairs)
    assert got == pytest.approx(dense + over, rel=0.05)
    # No part hides another.
    assert over == 0 or 0.1 < over / dense < 5
    if aux:
        without = counted(lambda: step_of(c, d, native, 0), KNOWN)
        assert got - without == pytest.approx(sum(cost.step_flops(d, False, aux)) - sum(
            cost.step_flops(d, False, 0)), rel=0.05)  # fmt: skip


def test_flops_of_fidelity(tmp_path, plainly):
    run = Run(tmp_path)
    for name in ("corpus", "pretrain", "extract", "basis", "project", "train"):
        getattr(run, name)()
    trained = model.Crosscoder.load(run.home / "crosscoders/topk/seed0")
    z, exact = bill.sizes(run.s, run.results, HERE)
    assert exact
    d = cost.Dictionary(run.s.crosscoders["topk"], 4, 4, 16, 24, 4)
    got = counted(lambda: fidelity.explained(trained, run.home / "activations", 0.1, 0))
    # `on @ present` counts features by site: F·N a row
    also = 2.0 * z.held_out_rows * 48 * 4
    assert got == pytest.approx(cost.explained_flops(d, z.held_out_rows) + also, rel=0.05)
    outputs = HeldOut(run.home / "activations", run.sites)
    _, rows = fidelity.spliced_rows(run.s, Tokens(run.tokens), outputs)
    f = fidelity.explained(trained, run.home / "activations", 0.1, rows)[2]
    planned = run.stage("fidelity topk").work[0].forward32
    got = counted(
        lambda: fidelity.spliced_losses(
            trained, f, run.s, run.home / "activations", run.home / "snapshots", run.tokens,
            torch.device("cpu"),
        ),
        {torch.ops.aten.mm: _dense_mm, torch.ops.aten._sparse_mm: lambda *_, **__: 0},
    )  # fmt: skip
    assert got == pytest.approx(planned, rel=0.05)


def _dense_mm(a, b, *_, out_shape=None, **__):
    """Of products of models; the dictionary's sparse one, with F = 48 in the middle, is not."""
    return 0 if a[1] == 48 and b == (48, 16) and a[0] != 4 * 32 else 2 * a[0] * a[1] * b[1]


# Memory


def nbytes(tensors) -> int:
    return sum(t.nbytes for t in tensors)


@pytest.mark.parametrize(
    "kind",
    [
        {"dimensions": 12},
        {"dimensions": 12, "moments": "float32"},
        {"train_decoder": False},
        {"activation": "jumprelu", "gate": "snapshot"},
        {"moments": "float32", "activation": "relu"},
    ],
)
def test_tensors_of_a_training_are_those_planned(kind, tmp_path):
    c, d = dictionary(**kind)
    basis = None
    if d.dimensions:
        basis = torch.linalg.qr(torch.randn(40, d.dimensions)).Q
    W, G = weights_of(c, d, basis)
    assert nbytes(W.named().values()) == cost.weight_tensors(d)
    assert nbytes(G.named().values()) == cost.weight_tensors(d)
    trained = ["W_enc", "b_enc", "b_dec"] + (["W_dec"] if c.train_decoder else [])
    trained += ["log_threshold"] if c.activation == "jumprelu" else []
    adam = Adam(
        [W.named()[n] for n in trained], [G.named()[n] for n in trained], [1.0] * len(trained),
        c.moments, torch.device("cpu"),
    )  # fmt: skip
    assert nbytes([*adam.first, *adam.second]) == cost.moment_tensors(d)
    silent = torch.zeros(c.features, dtype=torch.long)
    now = train.Progress(W, G, adam, silent, torch.tensor(-1.0), torch.tensor(-1), "")
    now.save(tmp_path)
    assert datasets(tmp_path / "state.h5") == cost.state_datasets(d)


# Bytes


def datasets(path: Path) -> int:
    """Bytes that an HDF5 file's datasets take in it."""
    found = []
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda _, item: found.append(
                item.id.get_storage_size() if isinstance(item, h5py.Dataset) else 0
            )
        )
    return sum(found)


def tensors(path: Path) -> int:
    """Bytes of a safetensors file's tensors."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return max(entry["data_offsets"][1] for entry in header.values())


def data_of(path: Path) -> int:
    if path.is_dir():
        return sum(data_of(p) for p in path.iterdir() if p.suffix in (".h5", ".safetensors"))
    return datasets(path) if path.suffix == ".h5" else tensors(path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activations.mode": "streamed", "basis.exact_limit": 40, "basis.largest": 30},
        {"activations.streams": ["residual", "mlp_out"], "activations.dtype": "float32",
         "crosscoders.topk.basis": "full"},
        {"snapshots.pretrain.optimizer": "muon", "snapshots.pretrain.tied_embeddings": True},
    ],
)  # fmt: skip
def test_bytes_of_a_small_run(changes, tmp_path, plainly):
    run = Run(tmp_path, changes)
    run.corpus()
    before = bill.bill(run.s, run.results)
    run.pretrain()
    if len(run.s.activations.streams) == 2:
        extracted_twice(run)
    else:
        run.extract()
    stages = [] if run.s.crosscoders["topk"].basis == "full" else ["basis"]
    if stages and run.s.activations.mode == "cached":
        stages.append("project")
    for name in [*stages, "train"]:
        getattr(run, name)()
    checked = 0
    for file in before.files:
        path = file.path
        if "archive" in str(path):
            path = run.home / "pretrain" / "archive" / path.name
        if not file.data or not path.exists():
            continue
        assert data_of(path) == file.data, path.relative_to(run.home)
        real = bill._size(path)
        assert real <= file.size <= real + 20_000 + 0.1 * real, path.relative_to(run.home)
        checked += 1
    assert checked >= (14 if run.s.activations.mode == "streamed" else 18)


def extracted_twice(run: Run) -> None:
    """Extract two streams, and stack each."""
    folder, steps = run.home / "activations", run.s.snapshots.chosen
    for step in steps:
        extract.extract(run.s, run.home / f"snapshots/step{step}", step, run.tokens, folder)
    for stream in run.s.activations.streams:
        place = folder / f"{stream}.1"
        files = [place / f"step{step}.h5" for step in steps]
        store.stack(files, steps, place / "stack.h5")


@pytest.mark.slow
def test_bytes_of_the_finished_experiment(finished):
    """Every dataset and tensor to the byte, all files within two per cent."""
    s, results = settings.load(finished / "config.yaml"), finished / "results"
    b = bill.bill(s, results)
    assert b.disk == 0
    assert not any(stage.left for stage in b.stages)
    planned = real = 0
    for file in b.files:
        if file.data:
            assert data_of(file.path) == file.data, file.path
        if file.path.name != "figures" and file.stays:
            assert file.path.exists(), file.path
            planned, real = planned + file.size, real + bill._size(file.path)
    assert planned == pytest.approx(real, rel=0.02)
    told = {path for f in b.files for path in (f.path, *f.path.rglob("*"))}
    rest = [p for p in (finished / RESULTS).rglob("*") if p.is_file() and p not in told]
    assert sum(p.stat().st_size for p in rest if "logs" not in str(p)) < 0.02 * real
    # What is gone has to be paid again, and nothing else.
    without = bill.bill(s, finished.folder / "nowhere")
    assert without.disk > 0.98 * real
    assert without.stage("extract").at_most


@pytest.mark.slow
def test_memory_of_the_finished_experiment(finished):
    """What Snakemake saw each process hold is no more than planned, and no less than a third."""
    s, results = settings.load(finished / "config.yaml"), finished / "results"
    b = bill.bill(s, results)
    for rule, name in (
        ("pretrain.tsv", "pretrain"), ("extract/20.tsv", "extract"), ("phases.tsv", "phases"),
        ("basis/residual.0.tsv", "basis residual.0"), ("features/batchtopk.tsv",
        "features batchtopk"), ("project/residual.0.0.tsv", "project residual.0"),
        ("train/batchtopk-0.tsv", "train batchtopk"),
        ("fidelity/batchtopk-0.tsv", "fidelity batchtopk"),
    ):  # fmt: skip
        header, values = (finished / RESULTS / "benchmarks" / rule).read_text().splitlines()[:2]
        row = dict(zip(header.split("\t"), values.split("\t"), strict=True))
        measured = float(row["max_rss"]) * 2**20
        planned = sum(b.stage(name).job.host.values())
        assert measured < planned < 3 * measured, name


MEASURED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from test_cost import Run, MEDIUM
from ontogeny.crosscoder import train, fidelity
import transformers.models.gpt_neox.modeling_gpt_neox
run = Run(Path(sys.argv[2]), MEDIUM | eval(sys.argv[4]))
torch.set_num_threads(1)
def kilobytes(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(name + ":")[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
getattr(run, sys.argv[3])()
print(before, kilobytes("VmHWM"))
"""
# Windows, pieces, matrices and dictionaries that are large beside a process.
MEDIUM = {
    "corpus.train_blocks": 1536, "corpus.held_out_blocks": 64, "corpus.pretrain_blocks": 16,
    "corpus.context": 64,
    "snapshots.steps": [0, 1, 2, 3, 4], "snapshots.pretrain.width": 128,
    "activations.window": 49152, "basis.dimensions": 256,
    "crosscoders.topk.features": 4096, "crosscoders.topk.batch_rows": 1024,
    "crosscoders.topk.steps": 4,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize(
    ("mode", "stages"),
    [
        ("cached", ["extract", "basis", "project", "fidelity"]),
        ("streamed", ["basis"]),
    ],
)
def test_memory_of_a_medium_run(mode, stages, tmp_path, plainly):
    """What each stage adds to a process, in the system's own count."""
    changes = {"activations.mode": mode}
    run = Run(tmp_path, MEDIUM | changes)
    run.corpus()
    run.pretrain()
    if mode == "streamed":
        run.extract()
    if "fidelity" in stages:
        stages = [*stages[:-1], "train", "fidelity"]
    names = {"basis": "basis residual.1", "project": "project residual.1"}
    names |= {"train": "train topk", "fidelity": "fidelity topk"}
    for name in stages:
        if name == "train":
            run.train()
            continue
        job = run.stage(names.get(name, name)).job
        words = [sys.executable, "-c", MEASURED, str(Path(__file__).parent), str(tmp_path), name]
        done = subprocess.run([*words, repr(changes)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        before, after = (int(word) * 1024 for word in done.stdout.split()[-2:])
        own = job.host["Python and torch"]
        planned = sum(job.host.values())
        assert before < own
        assert after < planned < 1.5 * after, name
        assert planned - own < 1.5 * (after - before), name


# What fits


PUBLIC = ["pythia-14m", "pythia-160m", "pythia-160m-98k", "gpt2-crfm", "olmo-2-1b", "pythia-6.9b"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A results folder in which the models' shapes are kept once they are known."""
    return tmp_path_factory.mktemp("results")


def public(name: str) -> settings.Settings:
    return settings.load(EXPERIMENTS / f"{name}.yaml")


def row(name: str, shapes: Path) -> str:
    """A row of the table in docs/cost.md."""
    b = bill.bill(public(name), shapes, machines.table("H100"))
    known = {n: d for n, d in machines.data()["devices"].items() if d["bfloat16"]}
    large = {
        n: machines.Machine(Path(), 10**15, 10**15, int(d["memory"]), n) for n, d in known.items()
    }
    holds = [n for n, machine in large.items() if not limits.too_large(replace(b, machine=machine))]
    smallest = min(holds, key=lambda n: machines.table(n).memory)
    return (
        f"| {name} | {b.disk / 1e9:.0f} GB | {b.host / 1e9:.0f} GB | {b.device / 1e9:.1f} GB "
        f"| {smallest} | {sum(w.flops for s in b.stages for w in s.work):.1e} | {b.hours:.0f} |"
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_public_models_fit_one_gpu_as_the_page_says(name, shapes):
    found = row(name, shapes)
    assert found in (ROOT / "docs" / "cost.md").read_text(), found
    b = bill.bill(public(name), shapes, machines.table("A100"))
    assert b.device < 80e9
    assert b.disk < 2e12


def test_the_papers_setting_costs_what_the_page_adds_up(shapes):
    """docs/cost.md's arithmetic, from the sizes alone."""
    s = public("pythia-160m")
    assert s.corpus.train_blocks * s.corpus.context == 800_000_000
    assert s.crosscoders["batchtopk"].features == 32_768
    assert len(s.snapshots.chosen) == 32
    b = bill.bill(s, shapes, machines.table("A100"))
    terms = b.stage("train batchtopk").job.device
    embedding, block = 50304 * 768, 12 * 768**2 + 13 * 768
    assert terms["snapshots on the device"] == 32 * 2 * (embedding + 7 * block) == 5_647_908_864
    weights = 4 * (32768 * (2 * 2048 + 2) + 2048)
    assert terms["weights"] == terms["gradients"] == weights == 537_141_248
    assert terms["moments"] == 2 * (2 * 32768 * 2048 + 4 * 32768) + 8 * (32768 + 2048)
    assert terms["directions"] == 2 * 4 * 24_576 * 2048
    assert sum(terms.values()) < 15e9
    forward = 8e8 * 32 * (2 * 7 * 12 * 768**2 + 7 * 4 * 2048 * 768)
    # 390,000 steps of 2,048 rows are 96 % of the windows' positions, or one window more
    assert b.stage("train batchtopk").work[0].forward == pytest.approx(forward, rel=0.01)
    files = {kind: sum(f.size for f in b.files if f.kind == kind) for kind in limits.DISK}
    assert files["training rows"] == 0
    assert files["tokens"] == pytest.approx(1.6e9, rel=0.01)
    assert files["held-out rows"] == pytest.approx(32 * 262_144 * (768 * 2 + 8), rel=0.01)
    page = (ROOT / "docs" / "cost.md").read_text()
    for kind in ("tokens", "held-out rows", "snapshots", "crosscoders"):
        assert f"{files[kind] / 1e9:.1f} GB" in page, (kind, files[kind])
    for name, size in terms.items():
        assert f"{size / 1e9:.2f} GB" in page, (name, size)
    assert f"{sum(terms.values()) / 1e9:.1f} GB" in page


class Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_rows_that_no_disk_holds_are_refused(shapes, monkeypatch):
    monkeypatch.setattr(machines.shutil, "disk_usage", lambda _: Usage(int(1.2e12)))
    monkeypatch.setattr(machines, "memory_of_host", lambda: 10**12)
    given = public("pythia-160m").model_dump(mode="json")
    given["device"] = "cpu"
    assert limits.faults(settings.load(given), shapes) == []
    given["activations"]["mode"] = "cached"
    (said,) = limits.faults(settings.load(given), shapes)
    assert said.startswith("activations.budget: the training rows need 39.5 TB more on disk")
    assert "has 1.2 TB free; set activations.mode: streamed, or lower activations.budget" in said
    assert "\n" not in said


def test_memory_that_is_not_there_is_refused(shapes, monkeypatch):
    s = public("olmo-2-1b")
    (said,) = limits.too_large(
        replace(bill.bill(s, shapes, machines.table("L40S")), machine=machines.Machine(
            Path(), 10**15, 10**15, 48 * 10**9, "L40S"))
    )[:1]  # fmt: skip
    assert said.startswith("activations.mode: basis residual.8 needs ")
    assert "of memory on the device (snapshots on the device 5" in said
    assert "L40S has 48.0 GB; set activations.mode: cached" in said
    monkeypatch.setattr(machines, "memory_of_host", lambda: 16 * 10**9)
    monkeypatch.setattr(machines.shutil, "disk_usage", lambda _: Usage(10**12))
    given = s.model_dump(mode="json")
    given["activations"]["window"] = 262_144
    given["device"] = "cuda"
    lines = limits.faults(settings.load(given), shapes)
    assert len(lines) == len({line.split(";")[-1] for line in lines})  # each mend once
    assert any("this machine has 16.0 GB; lower activations.window" in line for line in lines)


def test_a_gpu_is_found_by_its_drivers_tool(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '24564, NVIDIA GeForce RTX 4090, 8.9'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    here = machines.machine(public("pythia-14m"), tmp_path)
    assert (here.device, here.device_name) == (24564 * 2**20, "NVIDIA GeForce RTX 4090")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machines.machine(public("pythia-14m"), tmp_path).device == 0


def test_an_unknown_device_is_named_with_those_known():
    with pytest.raises(InputError, match="--device: B9 is not known; use one of A100-40, A100,"):
        machines.table("B9")


def test_every_device_has_a_source_and_plausible_numbers():
    for name, d in machines.data()["devices"].items():
        assert d["source"]
        assert 1 < d["half"] / d["float32"] < 20, name
        assert 1e11 < d["bandwidth"] < 1e13
        assert 1e10 < d["memory"] < 1e12
        assert d["bfloat16"] == (d["tf32"] is not None)
        rates = machines.table(name)
        assert rates.products <= d["half"]
        assert rates.forward < d["half"]
        assert rates.forward < d["float32"] or d["bfloat16"], "without bfloat16, float32 is run"


def test_what_is_there_is_paid(tmp_path):
    run = Run(tmp_path)
    run.corpus()
    run.pretrain()
    b = bill.bill(run.s, tmp_path)
    assert [b.stage(n).left for n in ("corpus", "pretrain", "snapshots", "extract")] == [0, 0, 0, 4]
    assert sum(f.missing for f in b.stage("snapshots").files) == 0
    (run.home / "snapshots/step1/model.safetensors").unlink()
    (run.home / "snapshots/step1/config.json").unlink()
    again = bill.bill(run.s, tmp_path)
    assert again.stage("snapshots").left == 1
    assert again.disk - b.disk == b.stage("snapshots").files[1].size
    text = table.show(again)
    assert "1 of 4" in text
    assert text.endswith("It fits.")


def test_shards_stay_within_the_budget(tmp_path):
    changes = {"activations.window": 512, "activations.budget": 0.0004, "basis.rows": 400}
    run = Run(tmp_path, changes)
    z, _ = bill.sizes(run.s, tmp_path, HERE)
    assert len(z.shard_rows) == 3
    assert sum(z.shard_rows) == 96 * 32
    b = bill.bill(run.s, tmp_path)
    rows = [f for f in b.files if f.kind == "training rows"]
    assert sum(f.data for f in rows) < 0.0004e9
    assert sum(f.data for f in rows) > 0.6 * 0.0004e9
    assert not any(f.stays for f in rows)
    assert b.stage("extract").jobs == 3 * 4
    assert b.stage("project residual.1").jobs == 3


def test_a_look_does_not_import_torch(tmp_path):
    run = Run(tmp_path)
    limits.faults(run.s, tmp_path)  # keeps the model's shape
    (tmp_path / "s.json").write_text(run.s.model_dump_json())
    words = "import sys; from ontogeny import settings; from ontogeny.plan.limits import faults; "
    words += f"s = settings.load({str(tmp_path / 's.json')!r}); "
    words += f"print(faults(s, {str(tmp_path)!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


def test_this_machine_is_measured(tmp_path):
    run = Run(tmp_path)
    rates = bill.measure(run.s, tmp_path)
    b = bill.bill(run.s, tmp_path, rates)
    for name in ("forward", "forward32", "products", "products32", "pairs"):
        assert 1e7 < getattr(rates, name) < 1e15, name
    assert 1e6 < rates.write < 1e11
    assert list((tmp_path).glob("**/.ontogeny-disk*")) == []
    # Small jobs: their processes' starts are nearly all of the time.
    jobs = sum(stage.left for stage in b.stages)
    assert 0.5 * jobs * rates.start < b.hours * 3600 < 10 * jobs * rates.start + 300
    assert "measured here: forward" in table.show(b)

"""The bill, held against real small runs: operations, memory, bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import RESULTS
from runs import HERE, MEDIUM, Run, counted, known_operations

from ontogeny import lineage, settings, streams
from ontogeny.activations import basis, order
from ontogeny.activations import cost as of_rows
from ontogeny.activations.sizes import FORWARD_TOKENS
from ontogeny.cost import bill, machines, scales, table
from ontogeny.cost.sizes import Dictionary
from ontogeny.crosscoder import cost as of_training
from ontogeny.crosscoder import model, pairs, train
from ontogeny.crosscoder.optimizer import Adam
from ontogeny.crosscoder.sizes import PIECE_ENTRIES
from ontogeny.features import held_out
from ontogeny.phases import levels


def test_sizes_are_the_stages_own():
    """Those that a stage does not take from a module that it shares with the formulas."""
    assert next(order.batches(np.arange(10), 512)).size * 512 == FORWARD_TOKENS
    assert held_out.MOST_POSITIONS == scales.MOST_POSITIONS
    assert held_out.PIECE_ENTRIES == PIECE_ENTRIES
    assert levels.BATCH_ENTRIES == 2 * scales.ENTRIES
    assert levels.NGRAM_TOKENS == scales.NGRAM_TOKENS


# Floating point operations


IN_PLACE = {
    torch.ops.aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1]  # torch counts addmm alone
}


@pytest.mark.parametrize("mode", ["cached", "streamed"])
def test_flops_of_the_stages(mode, tmp_path, plainly, monkeypatch):
    monkeypatch.setattr(
        basis, "piece_rows", lambda columns: 512
    )  # the first is read twice, of a window held
    run = Run(tmp_path, {"activations.mode": mode, "crosscoders.topk.steps": 30})
    run.stage("corpus")
    for name in ("pretrain", "extract", "basis", "project", "train"):
        if name == "project" and mode == "streamed":
            continue
        planned_as = "stream" if (mode, name) == ("streamed", "train") else name
        planned = sum(work.flops for work in run.line(planned_as).work)
        known = known_operations() if name == "train" else None
        got = counted(lambda name=name: run.stage(name), known)
        if name == "basis":  # torch counts no eigenvectors, no QR
            n, R = 4 * 16, 24
            planned -= of_rows.eigen_flops(n) + of_rows.qr_flops(n, R)
            assert planned > 2 * run.sizes.rows * n * n
        # Of a training, torch's counter leaves out the products that a sparse matrix samples.
        assert got == pytest.approx(planned, rel=0.08 if name == "train" else 0.05), name
    if mode == "streamed":
        # 7,680 rows are two passes and a half of windows that are computed at each visit.
        sizes = run.sizes
        assert sizes.windows == 3
        of = Dictionary(run.settings.crosscoders["topk"], 4, 4, 16, 24, 4)
        assert of_training.streamed_positions(sizes, of) > 2.4 * sizes.positions


@pytest.mark.parametrize("windows", [1, 2])
def test_a_streamed_corpus_of_few_windows_is_computed_once(windows, tmp_path, plainly):
    run = Run(tmp_path, {"activations.mode": "streamed", "activations.window": 3072 // windows})
    run.stages("corpus", "pretrain", "extract", "basis")
    planned = run.line("stream").work[0]
    got = counted(lambda: run.stage("train"), known_operations())
    assert got == pytest.approx(planned.flops, rel=0.05)
    assert planned.forward == 3072 * 4 * run.sizes.token_flops
    assert planned.forward > 0.2 * planned.flops


def test_flops_of_streamed_rows_in_all_dimensions(tmp_path, plainly):
    run = Run(tmp_path, {"activations.mode": "streamed", "crosscoders.topk.basis": "full"})
    run.stages("corpus", "pretrain", "extract")
    planned = sum(work.flops for work in run.line("stream").work)
    got = counted(lambda: run.stage("train"), known_operations())
    assert got == pytest.approx(planned, rel=0.05)


def test_flops_of_randomised_directions(tmp_path, plainly):
    run = Run(tmp_path, {"basis.exact_limit": 40, "basis.largest": 20, "basis.dimensions": 20})
    run.stages("corpus", "pretrain", "extract")
    width = of_rows.search_width(64, 20, run.sizes.rows)
    assert width == 30
    planned = run.line("basis").work[0].flops
    uncounted = 2 * (of_rows.orthonormal_flops(64, width) - 3 * 2.0 * 64 * width**2)
    uncounted += of_rows.eigen_flops(width)
    got = counted(lambda: run.stage("basis"), IN_PLACE)
    assert got == pytest.approx(planned - uncounted, rel=0.05)


def dictionary(sites: int = 4, width: int = 10, dimensions: int | None = None, **changes):
    """A dictionary of some sizes, and its settings."""
    section = {
        "inputs": {"layers": [0]}, "basis": "principal" if dimensions else "full", "features": 48,
        "k": 5, "batch_rows": 64, "steps": 10, "aux_features": 24, "aux_k": 8,
    } | changes  # fmt: skip
    chosen = settings.Crosscoder.model_validate(section)
    return chosen, Dictionary(chosen, sites, sites, width, dimensions, sites)


def weights_of(chosen, of, basis=None) -> tuple[model.Weights, model.Weights]:
    W = model.initial(chosen.basis, of.inputs, of.outputs, chosen.features, of.width, basis, 0)
    return W, model.Weights(**{n: torch.zeros_like(t) for n, t in W.named().items()})


def step_of(chosen, of, aux: int):
    """One step's loss and gradients on random rows, and how many pairs act."""
    generator = torch.Generator().manual_seed(0)
    W, G = weights_of(chosen, of)
    x = torch.randn(chosen.batch_rows, of.I, generator=generator)
    target = x.view(len(x), of.outputs, -1).transpose(0, 1)
    dead = torch.arange(aux)
    is_dead = torch.ones(aux, dtype=torch.bool)
    sample = torch.arange(max(1, round(chosen.batch_rows * chosen.threshold_share)))
    compute = train.make_loss(chosen, of.outputs)
    count = chosen.k * chosen.batch_rows * of.gates
    return compute(W, G, x, target, dead, is_dead, torch.tensor(0.1), sample, count)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"gate": "snapshot", "aux_features": 0, "aux_k": 1},
        {"activation": "jumprelu"},
        {"activation": "jumprelu", "gate": "snapshot"},
        {"activation": "relu"},
    ],
)
def test_flops_of_a_step(kind, monkeypatch):
    chosen, of = dictionary(**kind)
    known = known_operations()
    made, candidates = pairs.Candidates.at.__func__, []

    def noted(cls, position, *rest):
        candidates.append(len(position))
        return made(cls, position, *rest)

    monkeypatch.setattr(pairs.Candidates, "at", classmethod(noted))
    losses = []
    got = counted(lambda: losses.append(step_of(chosen, of, of.aux)), known)
    acting = None
    if of_training.pairs_of(of, False)[1]:
        active = float(losses[0].l0) * chosen.batch_rows * of.gates
        assert active > 100
        # Decoding and the decoder's gradient are counted as if no gate were shut; torch's counter
        # does not know the third product, of which a sparse matrix says where it is wanted.
        acting = (2 / 3 * candidates[0] * of.gates, candidates[0])
        assert of.gates > 1 or active == candidates[0]
    dense, over = of_training.step_flops(of, False, of.aux, acting)
    assert got == pytest.approx(dense + over, rel=0.1)  # sums over tokens are counted too
    # No part hides another.
    assert over == 0 or 0.1 < over / dense < 5
    if of.aux:
        without = counted(lambda: step_of(chosen, of, 0), known)
        planned = sum(of_training.step_flops(of, False, of.aux))
        planned -= sum(of_training.step_flops(of, False, 0))
        assert got - without == pytest.approx(planned, rel=0.05)


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
def test_tensors_of_a_training_are_those_planned(kind):
    chosen, of = dictionary(**kind)
    basis = torch.linalg.qr(torch.randn(40, of.dimensions)).Q if of.dimensions else None
    W, G = weights_of(chosen, of, basis)
    assert nbytes(W.named().values()) == nbytes(G.named().values()) == of.weights
    trained = ["W_enc", "b_enc", "b_dec"] + (["W_dec"] if chosen.train_decoder else [])
    trained += ["log_threshold"] if chosen.activation == "jumprelu" else []
    adam = Adam(
        [W.named()[n] for n in trained], [G.named()[n] for n in trained], [1.0] * len(trained),
        chosen.moments, torch.device("cpu"),
    )  # fmt: skip
    assert nbytes([*adam.first, *adam.second]) == of_training.moments(of)


MEASURED = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
import torch
from runs import Run, MEDIUM
from ontogeny.crosscoder import train, fidelity
import transformers.models.gpt_neox.modeling_gpt_neox
run = Run(Path(sys.argv[2]), MEDIUM | eval(sys.argv[4]))
torch.set_num_threads(1)
def kilobytes(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(name + ":")[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
run.command(*sys.argv[3].split())
print(before, kilobytes("VmHWM"))
"""
COMMANDS = {
    "extract": "extract 1", "basis": "basis residual.1", "project": "project residual.1 0",
    "fidelity": "fidelity topk --seed 0", "token_table": "token_table residual.1",
    "stream": "train topk --seed 0 --wanted {wanted}",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize(
    ("mode", "stages"),
    [
        ("cached", ["extract", "token_table", "basis", "project", "train", "fidelity"]),
        ("streamed", ["basis", "stream"]),
    ],
)
def test_memory_of_a_medium_run(mode, stages, tmp_path, plainly):
    """What each stage adds to a process, in the system's own count."""
    changes = {"activations.mode": mode, "crosscoders.topk.seeds": [0, 1]}
    run = Run(tmp_path, MEDIUM | changes)
    run.stages("corpus", "pretrain")
    if mode == "streamed":
        run.stage("extract")
    for name in stages:
        if name == "train":
            run.stage(name)
            continue
        if name == "token_table":
            run.stage("extract")
        if name == "stream":
            run.stage("basis")
            streams.want(run.map, streams.trainings(run.map, "residual.1"))
        job = run.line(name).job
        folder = str(Path(__file__).parents[1])
        command = COMMANDS[name].format(wanted=run.map.path("wanted"))
        words = [sys.executable, "-c", MEASURED, folder, str(tmp_path), command]
        # With an arena for each thread, the same stage takes between 34 and 109 MB by chance.
        plain = os.environ | {"CXX": "none", "MALLOC_ARENA_MAX": "1"}
        done = subprocess.run([*words, repr(changes)], capture_output=True, text=True, env=plain)
        assert done.returncode == 0, done.stderr[-3000:]
        before, after = (int(word) * 1024 for word in done.stdout.split()[-2:])
        own = job.host["Python and torch"]
        # Nothing is compiled, and so short a training keeps no state.
        unused = {"compiler", "states, to save"}
        planned = sum(size for term, size in job.host.items() if term not in unused)
        assert before < own
        most = 2.2 if name == "fidelity" else 1.5  # whose cost is declared, a bound
        # Libraries and allocators hold more on one machine than on another: within the headroom.
        assert after < machines.data()["cluster"]["memory"] * planned, name
        assert planned < most * after, name
        assert planned - own < most * (after - before), name


# Bytes


def datasets(path: Path) -> int:
    """Bytes that an HDF5 file's datasets take in it."""
    sizes = []
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda _, item: sizes.append(
                item.id.get_storage_size() if isinstance(item, h5py.Dataset) else 0
            )
        )
    return sum(sizes)


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
    """Data within a few per cent, and files within what they have beside it."""
    run = Run(tmp_path, changes)
    run.stage("corpus")
    before = bill.bill(run.settings, run.results)
    stages = [] if run.settings.crosscoders["topk"].basis == "full" else ["basis"]
    if stages and run.map.cached:
        stages.append("project")
    run.stages("pretrain", "extract", *stages, "train")
    checked = 0
    for file in before.files:
        if not file.path.exists() or file.kind == "tables" or file.path.suffix == ".csv":
            continue
        planned = file.size - bill.BESIDE
        assert data_of(file.path) == pytest.approx(planned, rel=0.03, abs=700), file.path
        assert bill.size_of(file.path) <= file.size * 1.03 + 700, file.path
        checked += 1
    assert checked >= (14 if run.settings.activations.mode == "streamed" else 18)


@pytest.mark.slow
def test_bytes_of_the_finished_experiment(finished):
    """All files together within two per cent and what each has beside its data."""
    given, results = settings.load(finished / RESULTS / "config.yaml"), finished / "results"
    planned = bill.bill(given, results)
    assert planned.disk == 0
    assert not any(line.left for line in planned.lines)
    kept = [f for f in planned.files if f.stays and f.path.name not in ("figures", "atlas")]
    assert [f.path for f in kept if not f.path.exists()] == []
    data = [f for f in kept if f.kind != "tables" and f.path.suffix != ".csv"]
    real = sum(bill.size_of(f.path) for f in data)
    assert 0.98 * sum(f.size - bill.BESIDE for f in data) < real < 1.02 * sum(f.size for f in data)
    assert sum(f.size for f in kept if f.kind == "tables") > 0.5 * sum(
        f.there for f in kept if f.kind == "tables"
    )
    told = {path for f in planned.files for path in (f.path, *f.path.rglob("*"))}
    tables = {path for f in kept for path in f.path.parent.rglob("*") if f.kind == "tables"}
    rest = [p for p in (finished / RESULTS).rglob("*") if p.is_file() and p not in told | tables]
    assert sum(p.stat().st_size for p in rest if "logs" not in str(p)) < 0.02 * real
    # What is gone has to be paid again, and nothing else.
    without = bill.bill(given, finished.folder / "nowhere")
    assert without.disk > 0.98 * real
    assert without.line("extract").at_most


@pytest.mark.slow
def test_memory_of_the_finished_experiment(finished):
    """What Snakemake saw each process hold is no more than planned, and no less than a third."""
    given, results = settings.load(finished / RESULTS / "config.yaml"), finished / "results"
    planned = bill.bill(given, results)
    for rule, name in (
        ("pretrain/40.tsv", "pretrain"), ("extract/20.tsv", "extract"), ("phases.tsv", "phases"),
        ("basis/residual.0.tsv", "basis residual.0"), ("features/batchtopk.tsv",
        "features batchtopk"), ("project/residual.0.0.tsv", "project residual.0"),
        ("train/batchtopk-0.tsv", "train batchtopk"),
        ("fidelity/batchtopk-0.tsv", "fidelity batchtopk"),
    ):  # fmt: skip
        header, values = (finished / RESULTS / "benchmarks" / rule).read_text().splitlines()[:2]
        row = dict(zip(header.split("\t"), values.split("\t"), strict=True))
        measured = float(row["max_rss"]) * 2**20
        assert measured < sum(planned.line(name).job.host.values()) < 3 * measured, name


# What is done


def test_what_is_there_is_paid(tmp_path):
    run = Run(tmp_path)
    run.stages("corpus", "pretrain")
    first = bill.bill(run.settings, tmp_path)
    stages = ("corpus", "pretrain", "snapshot", "extract")
    assert [first.line(name).left for name in stages] == [0, 0, 0, 4]
    assert sum(f.missing for f in first.line("snapshot").files) == 0
    assert all(f.path.parent == lineage.archive(run.map) for f in first.line("pretrain").files)
    (run.map.path("snapshot", step=1) / "model.safetensors").unlink()
    (run.map.path("snapshot", step=1) / "config.json").unlink()
    again = bill.bill(run.settings, tmp_path)
    assert again.line("snapshot").left == 1
    assert again.disk - first.disk == first.line("snapshot").files[1].size
    text = table.show(again)
    assert "1 of 4" in text
    assert text.endswith("It fits.")


def test_shards_stay_within_the_budget(tmp_path):
    changes = {"activations.window": 512, "activations.budget": 0.0004, "basis.rows": 400}
    run = Run(tmp_path, changes)
    assert len(run.sizes.shard_rows) == 3
    assert sum(run.sizes.shard_rows) == 96 * 32
    planned = bill.bill(run.settings, tmp_path)
    rows = [f for f in planned.files if f.kind == "training rows" and f.size]
    data = sum(f.size - bill.BESIDE for f in rows)
    assert 0.6 * 0.0004e9 < data < 0.0004e9
    assert not any(f.stays for f in rows)
    assert planned.line("extract").jobs == 3 * 4
    assert planned.line("project residual.1").jobs == 3


def test_every_declared_cost_is_a_number(tmp_path):
    """Of scales and keys that there are, and no less than nothing."""
    run = Run(tmp_path)
    lines, _ = bill.lines(run.map, HERE, everything=True)
    for line in lines:
        terms = [*line.job.host.values(), *line.job.device.values()]
        assert min(terms) >= 0, line.name
        assert all(np.isfinite([*vars(line.job.work).values(), *terms])), line.name


def test_this_machine_is_measured(tmp_path):
    run = Run(tmp_path)
    rates = bill.measure(run.settings, tmp_path)
    planned = bill.bill(run.settings, tmp_path, rates)
    for name in ("forward", "forward32", "products", "products32", "pairs"):
        assert 1e7 < getattr(rates, name) < 1e15, name
    assert 1e6 < rates.write < 1e11
    assert list((tmp_path).glob("**/.ontogeny-disk*")) == []
    # Small jobs: their processes' starts are nearly all of the time.
    jobs = sum(line.left for line in planned.lines)
    assert 0.5 * jobs * rates.start < planned.hours * 3600 < 10 * jobs * rates.start + 300
    assert "measured here: forward" in table.show(planned)

"""What fits, and what is said of what does not: no experiment runs here."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from runs import small

from benchmarks import bill as large
from ontogeny import registry, settings
from ontogeny.cost import bill, limits, machines, terms
from ontogeny.cost.rates import COSTS
from ontogeny.files import InputError

PUBLIC = ["pythia-14m", "pythia-160m", "pythia-160m-98k", "gpt2-crfm", "olmo-2-1b", "pythia-6.9b",
          "pythia-6.9b-streamed"]  # fmt: skip


@pytest.fixture(autouse=True)
def built_for_processors(monkeypatch):
    """The page's numbers are those with torch's CPU build, whichever is installed here."""
    monkeypatch.setattr(terms, "built_for_cuda", lambda: False)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A results folder in which the models' shapes are kept once they are known."""
    return tmp_path_factory.mktemp("results")


def public(name: str) -> settings.Settings:
    return settings.load(ROOT / "experiments" / f"{name}.yaml")


def row(name: str, shapes: Path) -> str:
    """A row of the table in docs/cost.md."""
    planned = bill.bill(public(name), shapes, machines.table("H100"))
    known = {n: d for n, d in machines.data()["devices"].items() if d["bfloat16"]}
    every = {
        n: machines.Machine(Path(), 10**15, 10**15, int(d["memory"]), n) for n, d in known.items()
    }
    holds = [
        n for n, there in every.items() if not limits.too_large(replace(planned, machine=there))
    ]
    smallest = min(holds, key=lambda n: machines.table(n).memory)
    flops = sum(work.flops for line in planned.lines for work in line.work)
    return (
        f"| {name} | {planned.disk / 1e9:.0f} GB | {planned.host / 1e9:.0f} GB "
        f"| {planned.device / 1e9:.1f} GB | {smallest} | {flops:.1e} | {planned.hours:.0f} |"
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_public_models_fit_one_gpu_as_the_page_says(name, shapes):
    found = row(name, shapes)
    assert found in (ROOT / "docs" / "cost.md").read_text(), found
    planned = bill.bill(public(name), shapes, machines.table("A100"))
    assert planned.device < 80e9
    assert planned.disk < 3e12


def test_the_papers_setting_costs_what_the_page_adds_up(shapes):
    """docs/cost.md's arithmetic, from the sizes alone."""
    given = public("pythia-160m")
    assert given.corpus.train_blocks * given.corpus.context == 800_000_000
    assert given.crosscoders["batchtopk"].features == 32_768
    assert len(given.snapshots.chosen) == 32
    planned = bill.bill(given, shapes, machines.table("A100"))
    training = planned.line("stream residual.6")
    assert planned.line("train batchtopk").job.device == {}
    terms = training.job.device
    embedding, block = 50304 * 768, 12 * 768**2 + 13 * 768
    assert terms["snapshots on the device"] == 32 * 2 * (embedding + 7 * block) == 5_647_908_864
    R = 3840  # five times the width
    weights = 4 * (32768 * (2 * R + 2) + R)
    assert weights == 1_006_910_464
    assert terms["weights"] == terms["gradients"] == 3 * weights  # two seeds, and the baseline
    moments = 2 * (2 * 32768 * R + 4 * 32768) + 8 * (32768 + R)
    assert 2 * moments < terms["moments"] < 3 * moments
    assert terms["directions"] == 4 * 24_576 * R  # both dictionaries use the same
    assert sum(terms.values()) < 30e9
    forward = 8e8 * 32 * (2 * 7 * 12 * 768**2 + 7 * 4 * 2048 * 768)
    # Once for all three. 390,000 steps of 2,048 rows are nearly all of the positions.
    assert training.work[0].forward == pytest.approx(forward, rel=0.01)
    sizes = dict.fromkeys(limits.mends("disk"), 0)
    for file in planned.files:
        sizes[file.kind] += file.size
    assert sizes["training rows"] == 0
    assert sizes["tokens"] == pytest.approx(1.6e9, rel=0.01)
    assert sizes["held-out rows"] == pytest.approx(32 * 262_144 * (768 * 2 + 8), rel=0.01)
    page = (ROOT / "docs" / "cost.md").read_text()
    for kind in ("tokens", "held-out rows", "snapshots", "crosscoders"):
        assert f"{sizes[kind] / 1e9:.1f} GB" in page, (kind, sizes[kind])
    for name, size in terms.items():
        assert f"{size / 1e9:.2f} GB" in page, (name, size)
    assert f"{sum(terms.values()) / 1e9:.1f} GB" in page


def test_the_bill_of_the_page_is_the_plans(shapes):
    page = (ROOT / "docs" / "cost.md").read_text()
    assert large.page(shapes) in page


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
    assert said.startswith("activations.budget: the training rows need 39.7 TB more on disk")
    assert "has 1.2 TB free; set activations.mode: streamed, or lower activations.budget" in said
    assert "\n" not in said


def test_memory_that_is_not_there_is_refused(shapes):
    given = public("olmo-2-1b")
    there = machines.Machine(Path(), 10**15, 10**15, 48 * 10**9, "L40S")
    planned = bill.bill(given, shapes, machines.table("L40S"))
    said = limits.too_large(replace(planned, machine=there))[0]
    assert said.startswith("activations.mode: basis residual.8 needs ")
    assert "of memory on the device (snapshots on the device 5" in said
    assert "L40S has 48.0 GB; set activations.mode: cached" in said
    changed = given.model_dump(mode="json")
    changed["activations"]["window"] = 1_048_576
    planned = bill.bill(settings.load(changed), shapes, machines.table("L40S"))
    lines = limits.too_large(replace(planned, machine=replace(there, host=16 * 10**9)))
    assert len(lines) == len({line.split(";")[-1] for line in lines})  # each mend once
    assert any("L40S has 48.0 GB; lower activations.window" in line for line in lines)
    assert any("this machine has 16.0 GB; lower crosscoders.batchtopk." in line for line in lines)


def test_trainings_that_do_not_fit_together_are_told_to_be_fewer(shapes):
    given = public("pythia-160m").model_dump(mode="json")
    given["crosscoders"]["batchtopk"] |= {"features": 131_072, "seeds": list(range(8))}
    there = machines.Machine(Path(), 10**15, 10**15, 48 * 10**9, "L40S")

    def lines(together: int | None) -> list[str]:
        given["activations"]["together"] = together
        planned = bill.bill(settings.load(given), shapes, machines.table("L40S"))
        every = limits.too_large(replace(planned, machine=there))
        return [line for line in every if "stream residual.6" in line]

    (line,) = lines(None)
    assert line.startswith("activations.together: stream residual.6 needs ")
    assert "; set activations.together to fewer trainings, or lower features of the cross" in line
    assert lines(2) == []


def test_a_declared_cost_names_the_key_to_lower(shapes, monkeypatch):
    """By a key that is a factor of its largest term."""
    monkeypatch.setattr(machines, "memory_of_host", lambda: 8 * 10**9)
    given = public("pythia-14m").model_dump(mode="json")
    given |= {"device": "cpu", "kinds": {"permutations": 100_000}}
    lines = limits.faults(settings.load(given), shapes)
    assert any(line.startswith("kinds.permutations: kinds ") for line in lines), lines
    assert any("; lower kinds.permutations" in line for line in lines)


def test_every_term_of_a_cost_has_a_mend():
    known = limits.mends("memory")
    costs = [*COSTS.values(), *(stage.cost for stage in registry.stages().values())]
    for term in {term for cost in costs for term in cost.memory} - {"one"}:
        named = any("." in factor for factor in term.split(" * "))
        assert named or term in known or term.split(" * ")[0] in known, term


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


def test_a_look_does_not_import_torch(tmp_path):
    (tmp_path / "text.txt").write_text("words " * 100)
    given = small(tmp_path / "text.txt")
    assert given.snapshots.pretrain is not None  # whose shape need not be measured
    (tmp_path / "s.json").write_text(given.model_dump_json())
    words = "import sys; from ontogeny import settings; from ontogeny.cost.limits import faults; "
    words += f"s = settings.load({str(tmp_path / 's.json')!r}); "
    words += f"print(faults(s, {str(tmp_path)!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"

"""What analyses hold and what jobs ask for, held against real small runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SOURCES, Checkout
from runs import MEDIUM, Run

from ontogeny import devices, settings
from ontogeny.cost import bill, machines, needs
from ontogeny.experiment import Experiment

# Dictionary, rows and prompts that are large beside a process.
LARGE = MEDIUM | {
    "analyses": ["dimensionality", "kinds", "contexts", "complexity", "presence", "induction",
                 "circuits"],
    "corpus.held_out_blocks": 192, "analysis.bootstrap": 50, "kinds.permutations": 20,
    "induction.blocks": 20, "presence.active": 2, "presence.features": 16,
    "circuits": {
        "tasks": ["induction"], "least_accuracy": 0, "pairs": 64, "curve_snapshots": 2,
    },
    # So few quantiles that the rows of this run fill the sample of every feature.
    "contexts": {"lens_snapshots": 3, "quantiles": 2}, "crosscoders.topk.steps": 30,
}  # fmt: skip
BEFORE = ("corpus", "pretrain", "extract", "token_table", "basis", "project", "train", "fidelity",
          "features", "tasks", "phases")  # fmt: skip
# In an order in which each finds what it reads. Of complexity its time is all that it takes.
STAGES = ("dimensionality", "causes", "kinds", "contexts", "span", "presence", "attribution",
          "ablation", "heads", "induction")  # fmt: skip
MEASURED = """
import os
import sys
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
import torch
from runs import Run
from test_needs import LARGE
import transformers.models.gpt_neox.modeling_gpt_neox
run = Run(Path(sys.argv[2]), LARGE)
torch.set_num_threads(1)
def kilobytes(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(name + ":")[1].split()[0])
for name in sys.argv[3:]:
    child = os.fork()  # each begins with the same memory, and the imports are paid once
    if not child:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        run.stage(name)
        print("peak", name, kilobytes("VmHWM"), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_memory_of_analyses(tmp_path, monkeypatch):
    """What each adds to a process, in the system's own count."""
    monkeypatch.setattr(devices, "compiler_missing", lambda: "no compiler")
    run = Run(tmp_path, LARGE)
    run.stages(*BEFORE)
    here = Path(__file__).parent
    words = [sys.executable, "-c", MEASURED, f"{here.parent}:{here}", str(tmp_path), *STAGES]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("peak")]
    assert [name for _, name, _ in lines] == list(STAGES)
    peaks = {name: int(peak) * 1024 for _, name, peak in lines}
    planned = {name: sum(run.line(name).job.host.values()) for name in STAGES}
    for name in STAGES:
        # Libraries and allocators hold more on one machine than on another: within the headroom.
        assert peaks[name] < machines.data()["cluster"]["memory"] * planned[name], name
        assert planned[name] < 2.2 * peaks[name], name


# What jobs ask for


def public(name: str) -> settings.Settings:
    return settings.load(ROOT / "experiments" / f"{name}.yaml")


def asked_by(given: settings.Settings, results: Path) -> dict[str, needs.Needs]:
    return needs.table(Experiment(results / given.name, given))


def test_jobs_ask_for_what_the_plan_says(tmp_path):
    """Memory and minutes of every stage, with the headroom that is stated."""
    given = public("pythia-6.9b")
    asked, stated = asked_by(given, tmp_path), machines.data()["cluster"]
    planned = bill.bill(given, tmp_path, machines.table(stated["device"]))
    assert len(planned.lines) > 10
    for line in planned.lines:
        job = line.job
        memory = stated["memory"] * sum(job.host.values()) + stated["process"]
        assert memory <= asked[line.name].mem_mb * 2**20 <= memory + 101 * 2**20, line.name
        seconds = machines.seconds(job.work, planned.rates, line.threads, line.on_host)
        minutes = max(stated["least_minutes"], stated["minutes"] * seconds / 60)
        assert minutes <= asked[line.name].runtime < minutes + 1, line.name
        assert asked[line.name].gpu == bool(job.device), line.name
        assert bool(job.device) == needs.on_device(line.stage), line.name
    assert needs.of(asked, "extract").mem_mb > 40_000  # the model as it loads, and windows
    assert needs.of(asked, "extract_shard") == needs.of(asked, "extract")
    assert needs.of(asked, "fidelity", "batchtopk").runtime > 60
    assert needs.of(asked, "corpus").gpu == needs.of(asked, "features", "batchtopk").gpu == 0
    assert needs.of({}, "train", "batchtopk") == needs.UNKNOWN


def test_a_job_that_is_submitted_again_asks_for_more(tmp_path):
    asked = asked_by(public("pythia-6.9b"), tmp_path)
    first, second, third = (needs.of(asked, "train", "batchtopk", n) for n in (1, 2, 3))
    assert second.mem_mb == pytest.approx(1.5 * first.mem_mb, abs=1)
    assert third.mem_mb == pytest.approx(2.25 * first.mem_mb, abs=1)
    assert (second.runtime, third.runtime) == (2 * first.runtime, 4 * first.runtime)
    assert first.gpu == third.gpu == 1


def test_a_training_that_is_longer_than_the_partition_allows_goes_on_in_further_jobs(tmp_path):
    asked = asked_by(public("pythia-160m"), tmp_path)
    first = needs.of(asked, "train", "batchtopk")
    limit = first.runtime // 3 + 1
    pieces = [needs.of(asked, "train", "batchtopk", n, limit) for n in (1, 2, 3)]
    assert pieces == [needs.Needs(first.mem_mb, limit, first.gpu)] * 3
    fourth = needs.of(asked, "train", "batchtopk", 4, limit)  # something else has ended one
    assert (fourth.runtime, fourth.mem_mb) == (limit, pytest.approx(1.5 * first.mem_mb, abs=1))
    assert needs.retries(asked, limit) == 2 + 3
    assert needs.retries(asked, 10**6) == 3
    # What begins anew asks for more memory at once, and for no more time than there is.
    again = needs.of(asked, "fidelity", "batchtopk", 2, 5)
    assert again.runtime == 5
    assert again.mem_mb > needs.of(asked, "fidelity", "batchtopk", 1, 5).mem_mb


def test_a_training_on_several_devices_asks_for_all_of_them(tmp_path):
    given = public("pythia-6.9b").model_dump(mode="json")
    jobs = {}
    for count in (1, 4):
        given["crosscoders"]["batchtopk"]["devices"] = count
        chosen = settings.load(given)
        others = asked_by(chosen, tmp_path)
        train = others.pop("train batchtopk")
        assert train.gpu == count
        planned = bill.bill(chosen, tmp_path, machines.table("A100-40"))
        jobs[count] = train, others, planned.line("train batchtopk").job
    assert jobs[1][1] == jobs[4][1]
    one, four = (jobs[count][2] for count in (1, 4))
    assert jobs[1][0].mem_mb < jobs[4][0].mem_mb < 4 * jobs[1][0].mem_mb
    assert four.work.flops == one.work.flops
    seconds = [machines.seconds(job.work, planned.rates) for job in (one, four)]
    assert seconds[1] < 0.8 * seconds[0]
    for term in ("weights", "gradients", "moments"):
        assert four.device[term] == pytest.approx(one.device[term] / 4, rel=1e-3)


def test_any_job_of_a_stream_asks_for_all_of_its_trainings(tmp_path):
    """The first of them trains the others as well."""
    given = public("pythia-160m")
    asked = asked_by(given, tmp_path)
    assert asked["train batchtopk"] == asked["train random"] == asked["stream residual.6"]
    assert asked["train batchtopk"].gpu == 1
    alone = given.model_dump(mode="json")
    alone["crosscoders"] = {"batchtopk": alone["crosscoders"]["batchtopk"] | {"seeds": [0]}}
    one, three = (
        bill.bill(each, tmp_path, machines.table("A100")).line("stream residual.6").work[0]
        for each in (settings.load(alone), given)
    )
    assert three.forward == one.forward  # once, however many
    assert three.moved > 2 * one.moved
    assert three.flops < 1.2 * one.flops


def test_without_a_gpu_the_host_holds_all_and_takes_longer(tmp_path):
    given = public("pythia-14m").model_dump(mode="json")
    with_gpu = asked_by(settings.load(given), tmp_path)
    on_cpu = settings.load(given | {"device": "cpu"})
    without = asked_by(on_cpu, tmp_path)
    assert not any(each.gpu for each in without.values())
    assert without["train batchtopk"].runtime > 10 * with_gpu["train batchtopk"].runtime
    terms = bill.bill(on_cpu, tmp_path).line("fidelity batchtopk").job.host
    assert without["fidelity batchtopk"].mem_mb * 2**20 > 1.25 * sum(terms.values())


def test_every_dictionary_of_the_frontier_is_known(tmp_path):
    given = settings.load(ROOT / "config.yaml")
    assert "frontier" not in given.analyses
    asked = asked_by(given, tmp_path)
    every = given.all_crosscoders
    names = [f"{stage} {name}" for name in every for stage in ("train", "fidelity")]
    assert len(names) > 20
    assert set(names) <= set(asked)
    assert {"compare", "atlas", "fetch", "tokenizer", "summary", "stack"} <= set(asked)


def test_needs_import_no_torch(tmp_path):
    """Each job of a cluster reads the rules again."""
    given = public("pythia-6.9b")
    asked_by(given, tmp_path)  # keeps the model's shape
    (tmp_path / "s.json").write_text(given.model_dump_json())
    words = "import sys; from ontogeny import settings; from ontogeny.cost import needs; "
    words += "from ontogeny.experiment import Experiment; "
    words += f"s = settings.load({str(tmp_path / 's.json')!r}); "
    words += f"needs.table(Experiment({str(tmp_path)!r} + '/' + s.name, s)); "
    words += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


# The workflow


@pytest.mark.slow
def test_a_dry_run_through_the_profile_shows_what_the_plan_says(tmp_path):
    """Every rule of the paper's large model, which no machine here could run."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    for name in (*SOURCES, "experiments"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, tmp_path / name)
    here = Checkout(tmp_path)
    lines = "  longest_runtime: 600\n  gpu_type: a100\n"
    here.edit("profiles/slurm/config.yaml", "  # slurm_account", f"{lines}  # slurm_account")
    words = ("--profile", "profiles/slurm", "--configfile", "experiments/pythia-6.9b.yaml", "-n")
    done = here.command("snakemake", *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    asked = asked_by(public("pythia-6.9b"), tmp_path / "results")
    found: dict[str, int] = {}
    for job in re.split(r"\n(?=(?:local)?rule )", done.stdout + done.stderr)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", job)
        shown = re.search(r" resources: (.*)", job)
        assert rule is not None
        if rule[1] in ("stack", "numbers", "summary", "all") or rule[1].startswith(
            "figure"
        ):  # light
            continue
        assert shown is not None, job
        which = re.search(r"crosscoder=([\w-]+)|sites=([\w.]+)", job)
        name = (which[1] or which[2]) if which else ""
        stage = rule[1].removeprefix("measure_")
        expected = needs.of(asked, stage, name, longest=600)
        values = dict(pair.split("=") for pair in shown[1].split(", ") if "=" in pair)
        for key in ("mem_mb", "runtime", "gpu"):
            assert int(values[key]) == getattr(expected, key), (rule[1], key)
        assert int(values["runtime"]) <= 600
        assert values.get("gpu_model") == ("a100" if needs.on_device(stage) else None), rule[1]
        assert needs.on_device(stage) == (expected.gpu > 0), rule[1]
        found[rule[1]] = found.get(rule[1], 0) + 1
    assert found["extract_shard"] == 47 * 32
    assert found["extract"] == found["snapshot"] == 32
    assert {
        "corpus",
        "basis",
        "project",
        "train",
        "fidelity",
        "features",
        "phases",
        "atlas",
    } <= set(found)

"""What analyses cost and what jobs ask for, held against real small runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SOURCES, Checkout
from test_cost import KNOWN, MEDIUM, Run, counted

from ontogeny import devices, settings
from ontogeny.atlas import build
from ontogeny.circuits import ablation, attribution, downstream, tasks, words
from ontogeny.features import (
    collect,
    complexity,
    contexts,
    dimensionality,
    evolution,
    kinds,
    lens,
    presence,
    span,
)
from ontogeny.phases import heads, induction
from ontogeny.plan import analyses, bill, cost, machines, needs

SMALL = {
    "analyses": ["dimensionality", "kinds", "contexts", "complexity", "presence", "induction",
                 "circuits"],
    "corpus.context": 64, "analysis.bootstrap": 50, "analysis.permutations": 20,
    "heads.blocks": 6, "presence_tests.active": 2, "presence_tests.features": 16,
    "circuits": {"tasks": ["induction"], "pairs": 16, "curve_snapshots": 2},
    "contexts": {"lens_snapshots": 3},
    # The earlier parts are those of test_cost.py.
    "corpus.held_out_blocks": 24,
}  # fmt: skip
STAGES = ("dimensionality", "kinds", "contexts", "span", "complexity", "presence", "attribution",
          "ablation", "heads", "induction")  # fmt: skip


class Analysed(Run):
    """The small experiment and its analyses, a stage at a time."""

    @property
    def folder(self) -> Path:
        return self.home / "crosscoders/topk/seed0"

    @property
    def features(self) -> Path:
        return self.home / "features/topk"

    def trained(self) -> None:
        for name in ("corpus", "pretrain", "extract", "basis", "project", "train", "fidelity"):
            getattr(self, name)()
        density = self.folder / "density.parquet"
        steps = self.s.snapshots.chosen
        evolution.describe(self.s.analysis, [self.folder], [density], steps, self.features)
        tasks.build(
            self.s.circuits, self.tokens, self.home / "corpus/tokenizer.json",
            self.home / "tasks.h5", self.home / "tasks.csv",
        )  # fmt: skip

    def dimensionality(self) -> None:
        dimensionality.describe(
            self.s.analysis, [self.folder], [self.folder / "density.parquet"],
            self.features / "features.parquet", self.s.snapshots.chosen,
            self.features / "dimensionality.csv",
        )  # fmt: skip

    def kinds(self) -> None:
        kinds.describe(
            self.s, self.folder, self.home / "activations", self.tokens,
            self.features / "kinds.parquet", self.features / "kinds_control.csv",
        )  # fmt: skip

    def contexts(self) -> None:
        contexts.describe(
            self.s, self.folder, self.home / "activations", self.home / "snapshots", self.tokens,
            self.home / "corpus/tokenizer.json", self.features / "contexts.h5",
            self.features / "contexts.parquet",
        )  # fmt: skip

    def span(self) -> None:
        span.measure(
            self.s, self.folder, self.home / "activations", self.home / "snapshots", self.tokens,
            self.features / "span.parquet", self.features / "span_contexts.parquet",
        )  # fmt: skip

    def complexity(self) -> None:
        complexity.describe(
            self.s.analysis, self.features / "features.parquet", self.features / "span.parquet",
            None, self.features / "complexity.csv",
        )  # fmt: skip

    def presence(self) -> None:
        presence.describe(
            self.s, self.folder, self.home / "activations", self.tokens,
            self.features / "features.parquet", self.features / "presence.parquet",
            self.features / "presence.csv",
        )  # fmt: skip

    def attribution(self) -> None:
        attribution.describe(
            self.s, self.folder, self.home / "snapshots", self.home / "tasks.h5",
            self.home / "circuits/topk",
        )  # fmt: skip

    def ablation(self) -> None:
        ablation.describe(
            self.s, self.folder, self.home / "snapshots", self.home / "tasks.h5",
            self.home / "circuits/topk", self.home / "circuits/topk/curves.csv",
            self.home / "circuits/topk/circuits.csv",
        )  # fmt: skip

    def heads(self) -> None:
        heads.measure(
            self.s, self.home / "snapshots", self.tokens, self.home / "phases/heads.h5",
            self.home / "phases/heads.csv",
        )  # fmt: skip

    def induction(self) -> None:
        induction.describe(
            self.s, self.home / "phases/heads.h5", None, None, self.home / "phases/induction.csv",
            self.home / "phases/induction_curves.csv",
        )  # fmt: skip

    def job(self, name: str) -> cost.Job:
        """What the bill says of an analysis."""
        of_model = {"heads", "induction", "tasks"}
        return self.stage(name if name in of_model else f"{name} topk").job


def test_sizes_are_the_analyses_own():
    assert kinds.MOST_POSITIONS == analyses.KINDS_POSITIONS
    assert kinds.PIECE_ENTRIES == cost.FIDELITY_ENTRIES
    assert collect.PIECE_ENTRIES == analyses.COLLECTED_ENTRIES
    assert (contexts.PIECE_VALUES, contexts.SAMPLE, contexts.LENS_BLOCKS) == (
        analyses.CONTEXTS_VALUES, analyses.CONTEXTS_SAMPLE, analyses.LENS_BLOCKS,
    )  # fmt: skip
    assert lens.PIECE_ENTRIES == analyses.LENS_ENTRIES
    assert build.NEAR_ENTRIES == analyses.ATLAS_ENTRIES
    assert span.BATCH_TOKENS == analyses.SPAN_TOKENS
    assert (presence.FOLDS, presence.BLOCK_ENTRIES) == (
        analyses.PRESENCE_FOLDS, analyses.PRESENCE_ENTRIES,
    )  # fmt: skip
    assert (heads.MOST_CONTEXT, heads.BATCH_ENTRIES, len(heads.EIGHTHS)) == (
        analyses.HEADS_CONTEXT, analyses.HEADS_ENTRIES, analyses.HEADS_DISTANCES,
    )  # fmt: skip
    assert induction.SAMPLES == analyses.HEADS_SAMPLES
    assert attribution.PIECE_ENTRIES == analyses.PROMPTS_ENTRIES
    assert downstream.BATCH_TOKENS == {
        "cpu": analyses.PROMPTS_TOKENS[False], "cuda": analyses.PROMPTS_TOKENS[True],
    }  # fmt: skip
    assert tasks.LONG == analyses.LONG_PROMPTS
    assert (complexity.PERMUTATIONS, complexity.PIECE_ENTRIES) == (
        analyses.COMPLEXITY_PERMUTATIONS, analyses.COMPLEXITY_ENTRIES,
    )  # fmt: skip
    for longest in (1, 5, 20, 32):
        assert span.grid(longest) == analyses.suffixes(longest)
    longest = analyses.LONGEST_PROMPTS
    assert longest["induction"] == 1 + 2 * tasks.PIECE[1]
    assert longest["copying"] == 1 + tasks.FARTHEST + 16
    meetings = [m.format("Mary", "Tom", "Mary", place=p, thing=t) for m in words.MEETINGS
                for p in words.PLACES for t in words.THINGS]  # fmt: skip
    # Three tokens a word, which small vocabularies need.
    assert 3 * max(len(m.split()) for m in meetings) <= analyses.OTHER_PROMPTS


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small experiment with all that later analyses read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "compiler_missing", lambda: "no compiler")
        run = Analysed(tmp_path_factory.mktemp("small"), SMALL)
        run.trained()
        for name in ("span", "attribution", "heads"):
            getattr(run, name)()
        yield run


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize(
    "name", ["contexts", "span", "presence", "attribution", "ablation", "heads"]
)
def test_flops_of_an_analysis_are_below_the_plan(name, small):
    """And not far below: sizes that the text decides are bounds."""
    got = counted(getattr(small, name), KNOWN)
    assert 0 < got < small.job(name).work.flops < 8 * got


MEASURED = """
import os
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from test_needs import Analysed, LARGE
import transformers.models.gpt_neox.modeling_gpt_neox
run = Analysed(Path(sys.argv[2]), LARGE)
torch.set_num_threads(1)
def kilobytes(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(name + ":")[1].split()[0])
for name in sys.argv[3:]:
    child = os.fork()  # each begins with the same memory, and the imports are paid once
    if not child:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        getattr(run, name)()
        print("peak", name, kilobytes("VmHWM"), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""
# Dictionary, rows and prompts that are large beside a process.
LARGE = SMALL | MEDIUM | {
    "corpus.held_out_blocks": 192, "circuits": {"tasks": ["induction"], "pairs": 64},
    "crosscoders.topk.steps": 30, "heads.blocks": 20,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_memory_of_analyses(tmp_path, monkeypatch):
    """What each adds to a process, in the system's own count."""
    monkeypatch.setattr(devices, "compiler_missing", lambda: "no compiler")
    run = Analysed(tmp_path, LARGE)
    run.trained()
    stages = [name for name in STAGES if name != "complexity"]  # its time is all that it takes
    words = [sys.executable, "-c", MEASURED, str(Path(__file__).parent), str(tmp_path), *stages]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("peak")]
    assert [name for _, name, _ in lines] == stages
    for _, name, peak in lines:
        planned = sum(run.job(name).host.values())
        assert int(peak) * 1024 < planned < 2.2 * int(peak) * 1024, name


# What jobs ask for


def public(name: str) -> settings.Settings:
    return settings.load(ROOT / "experiments" / f"{name}.yaml")


def test_jobs_ask_for_what_the_plan_says(tmp_path):
    """Memory and minutes of every stage, with the headroom that is stated."""
    s = public("pythia-6.9b")
    asked, stated = needs.table(s, tmp_path), machines.data()["cluster"]
    b = bill.bill(s, tmp_path, machines.table(stated["device"]))
    assert len(b.stages) > 10
    for stage in b.stages:
        job = stage.job
        memory = stated["memory"] * sum(job.host.values()) + stated["process"]
        assert memory <= asked[stage.name].mem_mb * 2**20 <= memory + 101 * 2**20, stage.name
        planned = bill.seconds(job.work, b.rates, stage.threads, stage.on_host) / 60
        minutes = max(stated["least_minutes"], stated["minutes"] * planned)
        assert minutes <= asked[stage.name].runtime < minutes + 1, stage.name
        assert asked[stage.name].gpu == bool(job.device), stage.name
    assert needs.of(asked, "extract").mem_mb > 40_000  # the model as it loads, and windows
    assert needs.of(asked, "fidelity", "batchtopk").runtime > 60
    assert needs.of(asked, "corpus").gpu == needs.of(asked, "features", "batchtopk").gpu == 0


def test_a_job_that_is_submitted_again_asks_for_more(tmp_path):
    asked = needs.table(public("pythia-6.9b"), tmp_path)
    first, second, third = (needs.of(asked, "train", "batchtopk", n) for n in (1, 2, 3))
    assert second.mem_mb == pytest.approx(1.5 * first.mem_mb, abs=1)
    assert third.mem_mb == pytest.approx(2.25 * first.mem_mb, abs=1)
    assert (second.runtime, third.runtime) == (2 * first.runtime, 4 * first.runtime)
    assert first.gpu == third.gpu == 1


def test_a_training_on_several_devices_asks_for_all_of_them(tmp_path):
    given = public("pythia-6.9b").model_dump(mode="json")
    jobs = {}
    for count in (1, 4):
        given["crosscoders"]["batchtopk"]["devices"] = count
        s = settings.load(given)
        asked = needs.table(s, tmp_path)
        train, others = asked.pop("train batchtopk"), asked
        assert train.gpu == count
        b = bill.bill(s, tmp_path, machines.table("A100-40"))
        jobs[count] = train, others, b.stage("train batchtopk").job
    assert jobs[1][1] == jobs[4][1]
    one, four = (jobs[count][2] for count in (1, 4))
    assert jobs[1][0].mem_mb < jobs[4][0].mem_mb < 4 * jobs[1][0].mem_mb
    assert four.work.flops == one.work.flops
    assert bill.seconds(four.work, b.rates) < 0.8 * bill.seconds(one.work, b.rates)
    for term in ("weights", "gradients", "moments"):
        assert four.device[term] == pytest.approx(one.device[term] / 4, rel=1e-3)


def test_without_a_gpu_the_host_holds_all_and_takes_longer(tmp_path):
    given = public("pythia-14m").model_dump(mode="json")
    with_gpu = needs.table(settings.load(given), tmp_path)
    without = needs.table(settings.load(given | {"device": "cpu"}), tmp_path)
    assert not any(each.gpu for each in without.values())
    assert without["train batchtopk"].runtime > 10 * with_gpu["train batchtopk"].runtime
    terms = bill.bill(settings.load(given | {"device": "cpu"}), tmp_path).stage(
        "fidelity batchtopk"
    )
    assert without["fidelity batchtopk"].mem_mb * 2**20 > 1.25 * sum(terms.job.host.values())


def test_every_dictionary_of_the_frontier_is_known(tmp_path):
    s = settings.load(ROOT / "config.yaml")
    assert "frontier" not in s.analyses
    asked = needs.table(s, tmp_path)
    names = [f"{stage} {name}" for name in s.all_crosscoders for stage in ("train", "fidelity")]
    assert len(names) > 20
    assert set(names) <= set(asked)
    assert {"compare", "atlas"} <= set(asked)


def test_needs_import_no_torch(tmp_path):
    """Each job of a cluster reads the rules again."""
    s = public("pythia-6.9b")
    needs.table(s, tmp_path)  # keeps the model's shape
    (tmp_path / "s.json").write_text(s.model_dump_json())
    words = "import sys; from ontogeny import settings; from ontogeny.plan import needs; "
    words += f"s = settings.load({str(tmp_path / 's.json')!r}); needs.table(s, {str(tmp_path)!r}); "
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
    words = ("--profile", "profiles/slurm", "--configfile", "experiments/pythia-6.9b.yaml", "-n")
    done = here.command("snakemake", *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    asked = needs.table(public("pythia-6.9b"), tmp_path / "results")
    found: dict[str, int] = {}
    for job in re.split(r"\n(?=(?:local)?rule )", done.stdout + done.stderr)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", job)
        shown = re.search(r" resources: (.*)", job)
        assert rule is not None
        if rule[1] not in needs.STAGES:  # light
            assert rule[1] in ("stack", "summary", "all") or rule[1].startswith("figure_"), job
            continue
        assert shown is not None, job
        which = re.search(r"crosscoder=([\w-]+)|sites=([\w.]+)", job)
        name = (which[1] or which[2]) if which else ""
        expected = needs.of(asked, rule[1], name)
        values = dict(pair.split("=") for pair in shown[1].split(", ") if "=" in pair)
        for key in ("mem_mb", "runtime", "gpu"):
            assert int(values[key]) == getattr(expected, key), (rule[1], key)
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

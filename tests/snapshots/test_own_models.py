"""Models that were not trained here, through the real DAG: a Trainer's folders, and a hub."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
import zstandard
from conftest import ROOT, WORKFLOW, Checkout, copied
from hub_server import HubServer
from test_workflow import killed_when
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ontogeny import preflight, settings
from ontogeny.corpus.build import END_OF_TEXT, train_tokenizer
from ontogeny.settings import Pretrain
from ontogeny.snapshots import shape, sources

pytestmark = pytest.mark.slow

EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
PAGE = ROOT / "docs" / "your-own-model.md"
RUN = "results/local-trainer-run"
KEPT = [0, 2, 5, 15]
ANALYSES = ("dimensionality", "kinds")
NOWHERE = "http://127.0.0.1:9"  # no one listens at the port `discard`
# The same experiments, small enough for a test.
SMALL = {
    "corpus": {"context": 32, "train_blocks": 128, "held_out_blocks": 16},
    "analysis": {"bootstrap": 20, "spliced_blocks": 4},
    "kinds": {"permutations": 20},
}
SMALL_CROSSCODER = {
    "inputs": {"layers": [1]},
    "basis": "principal",
    "features": 48,
    "k": 4,
    "batch_rows": 256,
    "steps": 120,
    "dead_after_rows": 20_000,
    "aux_features": 16,
    "aux_k": 4,
}


def configure(
    checkout: Checkout, file: str, text: str, analyses: Sequence[str] = (), **changes: Any
) -> str:
    """Write an experiment's YAML to a file of the checkout, cut down and changed; its words."""
    given = yaml.safe_load(text) | {"analyses": list(analyses)}
    for section, values in (SMALL | changes).items():
        given[section] = given.get(section, {}) | values
    kept = {name: c for name, c in given["crosscoders"].items() if c}
    given["crosscoders"] = {name: c | SMALL_CROSSCODER for name, c in kept.items()}
    (checkout / file).write_text(yaml.safe_dump(given, sort_keys=False))
    return file


def run(checkout: Checkout, *words: str) -> str:
    """Run a command that has to succeed; what it printed."""
    done = checkout.command(*words)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def holds_everything(
    checkout: Checkout, name: str, steps: list[int], analyses: Sequence[str] = ()
) -> dict[str, Any]:
    """Check that an experiment is finished: figures and summary. Returns provenance.json."""
    folder = checkout / "results" / name
    figures = {path.stem for path in (folder / "figures").iterdir()}
    given = yaml.safe_load((folder / "config.yaml").read_text())
    seeds = given["crosscoders"][given["primary"]]["seeds"]
    assert figures == {
        "training", "divergence", "fidelity", "histories", "peaks", "lifetimes", "directions",
        *(["stability"] if len(seeds) > 1 else []), *analyses,
    }  # fmt: skip
    for figure in figures:
        for kind in ("pdf", "png", "csv"):
            assert (folder / f"figures/{figure}.{kind}").stat().st_size > 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["snapshots"] == len(steps)
    assert 0 < summary["final_loss"] < 8
    assert "pretrain_tokens" not in summary
    about = json.loads((folder / "provenance.json").read_text())
    assert list(map(int, about["snapshots"])) == steps
    return about


# A Trainer's folders


@pytest.fixture(scope="module")
def own(new_checkout) -> Checkout:
    """The example with a short GPT-2 run, its experiment cut down and finished: do not change."""
    made = new_checkout()
    shutil.copytree(ROOT / "experiments", made / "experiments")
    made.environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run(made, "python", "experiments/local_trainer.py", "--steps", *map(str, KEPT))
    text = (made / "experiments/local-trainer.yaml").read_text()
    configure(made, "own.yaml", text, analyses=ANALYSES)
    made.snakemake("--configfile", "own.yaml")
    return made


@pytest.fixture
def changeable(own, tmp_path) -> Checkout:
    """A copy of it, time stamps included."""
    return copied(own, tmp_path / "checkout")


def test_a_trainers_run_ends_in_figures_offline(own) -> None:
    about = holds_everything(own, "local-trainer", KEPT, ANALYSES)
    for step in KEPT:
        assert about["snapshots"][str(step)]["folder"] == f"{RUN}/checkpoint-{step}"
        here = own / f"results/local-trainer/snapshots/step{step}"
        there = own / f"{RUN}/checkpoint-{step}"
        assert os.path.samefile(here / "model.safetensors", there / "model.safetensors")
        assert {p.suffix for p in here.iterdir() if p.name[0] != "."} == {".json", ".safetensors"}
    losses = np.genfromtxt(
        own / "results/local-trainer/phases/phases.csv", delimiter=",", names=True
    )["loss"]
    assert losses[-1] < losses[0] - 0.1
    assert own.would_run("--configfile", "own.yaml") == {}


def test_its_text_is_the_model_that_it_is_read_with(own) -> None:
    """The blocks decode to the modules that were kept from the training."""
    from tokenizers import Tokenizer

    with gzip.open(own / RUN / "text/kept-back.jsonl.gz", "rt") as file:
        documents = "\0".join(json.loads(line)["text"] for line in file)
    tokenizer = Tokenizer.from_file(str(own / RUN / "checkpoint-15/tokenizer.json"))
    with h5py.File(own / "results/local-trainer/corpus/tokens.h5") as file:
        blocks = file["tokens"][:]
    assert blocks.shape == (144, 32)
    for block in blocks[::16]:
        assert tokenizer.decode(block.tolist()).split(END_OF_TEXT)[0] in documents


def test_a_later_checkpoint_is_the_only_one_that_is_read(changeable) -> None:
    shutil.copytree(changeable / RUN / "checkpoint-15", changeable / RUN / "checkpoint-20")
    jobs = changeable.would_run("--configfile", "own.yaml")
    assert jobs["snapshot"] == jobs["extract"] == 1
    assert {"stack", "basis", "train", "features", "phases", "summary"} <= set(jobs)
    assert not {"tokenizer", "corpus"} & set(jobs)


def test_a_checkpoint_that_is_written_again_is_read_again(changeable) -> None:
    checkpoints = [changeable / RUN / f"checkpoint-{step}/model.safetensors" for step in (5, 2)]
    body = checkpoints[1].read_bytes()
    assert body != checkpoints[0].read_bytes()
    checkpoints[0].unlink()
    checkpoints[0].write_bytes(body)
    jobs = changeable.would_run("--configfile", "own.yaml")
    assert jobs["snapshot"] == jobs["extract"] == 1
    snapshot = "results/local-trainer/snapshots/step5"
    changeable.snakemake(snapshot, "--configfile", "own.yaml")
    assert (changeable / snapshot / "model.safetensors").read_bytes() == body
    for path in (changeable / RUN / "checkpoint-2").iterdir():
        os.utime(path)  # touched, its tokenizer too
    jobs = changeable.would_run("--configfile", "own.yaml")
    assert jobs["snapshot"] == 1
    assert not {"tokenizer", "corpus"} & set(jobs)


def test_a_checkpoint_that_the_trainer_removed_runs_nothing_again(changeable) -> None:
    """With the steps that are there, and with the steps listed; the last one too."""
    given = yaml.safe_load((changeable / "own.yaml").read_text())
    given["snapshots"]["steps"] = KEPT
    (changeable / "listed.yaml").write_text(yaml.safe_dump(given))
    for step in (5, 15):
        shutil.rmtree(changeable / RUN / f"checkpoint-{step}")
        for file in ("own.yaml", "listed.yaml"):
            assert changeable.would_run("--configfile", file) == {}, (step, file)
    said = run(changeable, "ontogeny", "check", "own.yaml")
    assert "no longer has steps 5 and 15; what results/local-trainer has read" in said
    assert "write steps: [0, 2]" in said


def test_another_tokenizer_tokenises_anew(changeable) -> None:
    changeable.edit(f"{RUN}/checkpoint-15/tokenizer.json", '"version": "1.0",', '"version":"1.0",')
    jobs = changeable.would_run("--configfile", "own.yaml")
    assert jobs["tokenizer"] == jobs["corpus"] == 1
    assert jobs["extract"] == len(KEPT)
    assert "snapshot" not in jobs


def two_lines() -> dict[str, str]:
    """The lines of local-trainer.yaml that docs/your-own-model.md changes for a Llama."""
    block = re.search(r"```diff\n(.*?)```", PAGE.read_text(), re.S)
    assert block is not None
    removed = [line[1:] for line in block[1].splitlines() if line.startswith("-")]
    added = [line[1:] for line in block[1].splitlines() if line.startswith("+")]
    assert len(removed) == len(added) == 2
    return dict(zip(removed, added, strict=True))


def test_a_llama_takes_two_lines(own) -> None:
    command = re.search(
        r"python (experiments/local_trainer.py --architecture .*)", PAGE.read_text()
    )
    assert command is not None
    run(own, "python", *command[1].split(), "--steps", *map(str, KEPT))
    text = (own / "experiments/local-trainer.yaml").read_text()
    for old, new in two_lines().items():
        assert text.count(old + "\n") == 1
        text = text.replace(old, new)
    configure(own, "llama.yaml", text, crosscoders={"random": None, "batchtopk": {"seeds": [0]}})
    given = yaml.safe_load((own / "llama.yaml").read_text())
    own.snakemake("--configfile", "llama.yaml")
    about = holds_everything(own, given["name"], KEPT)
    for step in KEPT:
        there = own / about["snapshots"][str(step)]["folder"]
        assert json.loads((there / "config.json").read_text())["model_type"] == "llama"
    assert own.would_run("--configfile", "llama.yaml") == {}
    assert own.would_run("--configfile", "own.yaml") == {}  # side by side


# Text


def tokens(checkout: Checkout, name: str, corpus: dict[str, Any]) -> tuple[np.ndarray, dict]:
    """Blocks and attributes of the corpus stage, with another text for the example's model."""
    example = yaml.safe_load((checkout / "experiments/local-trainer.yaml").read_text())
    example |= {"name": name, "corpus": corpus}
    file = configure(checkout, f"{name}.yaml", yaml.safe_dump(example))
    checkout.snakemake(f"results/{name}/corpus/tokens.h5", "--configfile", file)
    with h5py.File(checkout / f"results/{name}/corpus/tokens.h5") as stored:
        return stored["tokens"][:], dict(stored.attrs)


def test_text_from_zstandard_and_from_arrays(own) -> None:
    with h5py.File(own / "results/local-trainer/corpus/tokens.h5") as stored:
        blocks, attributes = stored["tokens"][:], dict(stored.attrs)

    body = gzip.decompress((own / RUN / "text/kept-back.jsonl.gz").read_bytes())
    (own / "text.jsonl.zst").write_bytes(zstandard.compress(body.replace(b'"text"', b'"source"')))
    files = {"files": {"paths": ["text.jsonl.*"], "column": "source"}}
    same, about = tokens(own, "zst", files)
    assert np.array_equal(same, blocks)
    assert about["corpus"] == attributes["corpus"]
    assert about["tokenizer"] == attributes["tokenizer"]

    array = blocks[::-1].ravel()
    np.save(own / "tokens.npy", array)
    own_ids, about = tokens(own, "array", {"tokens": {"path": "tokens.npy"}})
    assert np.array_equal(own_ids.ravel(), array)
    assert about["vocabulary"] == attributes["vocabulary"]
    assert about["end_of_text"] == 0


# A hub

HUB = "someone/tiny-neox"
ON_HUB = [0, 1, 4, 16, 64]
REVISIONS = {step: f"step{step}" for step in ON_HUB}
HUB_YAML = f"""
name: hub
device: cpu
corpus:
  files: {{ paths: [text.jsonl.zst] }}
snapshots:
  steps: {ON_HUB}
  hub: {{ repository: {HUB}, revision: "step{{step}}" }}
activations: {{ layers: [1] }}
crosscoders:
  main: {{ seeds: [0] }}
primary: main
"""


def text() -> list[str]:
    """Sources of this project, a document a module."""
    return [path.read_text() for path in sorted((ROOT / "src").rglob("*.py"))]


@pytest.fixture
def hub(tmp_path) -> Iterator[HubServer]:
    """A repository with five revisions of a tiny GPT-NeoX, in shards, and its tokenizer."""
    config = shape.config_of_pretrain(Pretrain(width=16, layers=2, heads=2), 512, 32)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(text(), 512), eos_token=END_OF_TEXT
    )
    with HubServer() as server:
        for step, revision in REVISIONS.items():
            torch.manual_seed(step)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
            folder = tmp_path / revision
            model.save_pretrained(folder, max_shard_size="40KB")
            tokenizer.save_pretrained(folder)
            server.add(HUB, revision, folder)
        yield server


@pytest.fixture
def hub_checkout(new_checkout, hub, tmp_path) -> Checkout:
    """A checkout whose configuration takes its snapshots from that hub."""
    made = new_checkout()
    ours = {key: made.environment[key] for key in ("PATH", "PYTHONPATH")}
    made.environment = hub.environment(tmp_path / "home", HF_HUB_DISABLE_XET="1") | ours
    lines = "".join(json.dumps({"text": document}) + "\n" for document in text())
    (made / "text.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    configure(made, "config.yaml", HUB_YAML)
    return made


def test_a_hub_that_misbehaves_and_a_killed_run(hub, hub_checkout, tmp_path) -> None:
    folder = hub_checkout / "results/hub/snapshots"
    published = hub.repositories["model", HUB]
    shards = sorted(p.name for p in (tmp_path / "step0").glob("model-*.safetensors"))
    assert len(shards) > 2

    def finished() -> list[int]:
        return [step for step in ON_HUB if (folder / f"step{step}/source.json").exists()]

    def amid() -> bool:
        """Some snapshot is there, and of another a part of a file."""
        parts = (tmp_path / "home").rglob("*.incomplete")
        return bool(finished()) and any(part.stat().st_size > 0 for part in parts)

    hub.misbehave(shards[-1], "slow", rate=2e4)
    killed_when(hub_checkout, amid)
    before = finished()
    assert 0 < len(before) < len(ON_HUB)
    assert not (hub_checkout / "results/hub/summary.json").exists()

    blobs = {path for path in (tmp_path / "home").rglob("blobs/*") if not path.suffix}
    kept = {path.name for path in blobs}
    assert len(kept) > len(shards)

    hub.behave()
    hub.misbehave(shards[0], "cut", times=1)
    hub.misbehave(shards[1], "error", times=2)
    hub.misbehave(shards[1], "wrong", times=1)
    hub_checkout.snakemake()
    assert all(not rules or rules[-1].times == 0 for rules in hub.rules.values())
    commits = {published.branches[REVISIONS[step]]: step for step in ON_HUB}
    fetched = [r for r in hub.requests if r.method == "GET" and r.file and r.revision]
    assert {commits[r.revision] for r in fetched if r.file in shards} == set(ON_HUB) - set(before)
    assert not [r for r in fetched if published.commits[r.revision][r.file].etag in kept]
    assert [r.status for r in fetched if r.file == shards[1]].count(500) == 2
    assert [r.range for r in fetched if r.range], "what was cut goes on where it ended"

    about = holds_everything(hub_checkout, "hub", ON_HUB)
    for commit, step in commits.items():
        snapshot = folder / f"step{step}"
        for name in ("config.json", "model.safetensors.index.json", *shards):
            assert (snapshot / name).read_bytes() == published.commits[commit][name].body
        assert about["snapshots"][str(step)]["commit"] == commit
        assert about["snapshots"][str(step)]["repository"] == HUB
    assert hub_checkout.would_run() == {}


def test_a_step_that_the_hub_lacks_stops_the_workflow_before_any_job(hub, hub_checkout) -> None:
    configure(hub_checkout, "config.yaml", HUB_YAML, snapshots={"steps": [0, 1, 5, 16]})
    done = hub_checkout.command(*WORKFLOW)
    said = (done.stdout + done.stderr).splitlines()
    assert done.returncode != 0
    assert [line for line in said if "step 5" in line] == [
        f"snapshots.steps: {HUB} has no step 5 (revision step5); nearest: 1, 4"
    ]
    assert not (hub_checkout / "results/hub").exists()
    assert {request.file for request in hub.requests if request.file} <= {"config.json"}


# Every experiment, and the page


@pytest.mark.parametrize("path", EXPERIMENTS, ids=[path.stem for path in EXPERIMENTS])
def test_experiments_can_start(own, path, monkeypatch) -> None:
    """Each is valid and has a DAG, without a network."""
    monkeypatch.setitem(own.environment, "HF_ENDPOINT", NOWHERE)
    given = settings.load(path)
    assert given.name == path.stem
    steps = KEPT if given.snapshots.steps == "all" else given.snapshots.steps
    jobs = own.would_run("--configfile", f"experiments/{path.name}", "--forceall")
    assert jobs["snapshot"] == jobs["extract"] == len(steps)
    assert jobs["train"] == sum(len(c.seeds) for c in given.crosscoders.values())
    assert jobs["summary"] == 1


def test_the_pages_ten_lines_can_run(own, monkeypatch) -> None:
    block = re.search(r"```yaml\n(name: .*?)```", PAGE.read_text(), re.S)
    assert block is not None
    lines = block[1].splitlines()
    assert len(lines) <= 10
    assert all(line.strip() and not line.strip().startswith("#") for line in lines)
    given = block[1]
    for old, new in (
        ("runs/mine/checkpoint-{step}", f"{RUN}/checkpoint-{{step}}"),
        ("text/*.jsonl", f"{RUN}/text/kept-back.jsonl.gz"),
    ):
        assert given.count(old) == 1
        given = given.replace(old, new)
    monkeypatch.chdir(own.folder)
    s = sources.resolve(settings.load(yaml.safe_load(given)))
    assert s.snapshots.chosen == KEPT
    preflight.check(s, "results")


def test_every_block_of_the_page_is_valid(own) -> None:
    """Each other YAML block replaces sections of the ten lines."""
    first, *others = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)
    assert len(others) >= 6
    for block in others:
        settings.load(yaml.safe_load(first) | yaml.safe_load(block))

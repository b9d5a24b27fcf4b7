"""Large files on scratch, and a cache of tokens and training states that is keyed by content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import RESULTS, tiny

from ontogeny import cache, scratch, settings
from ontogeny.cost import bill, limits, machines
from ontogeny.files import InputError


def on_scratch(folder: Path, **more: object) -> settings.Settings:
    return settings.load(tiny({"storage": {"scratch": str(folder), **more}}))


def test_large_folders_lead_to_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", str(tmp_path / "scratch"))
    s = settings.load(tiny({"storage": {"scratch": "$MINE/of", "on_scratch": ["activations"]}}))
    scratch.link(s, tmp_path / "results")
    place = tmp_path / "results/tiny/activations"
    assert place.is_symlink()
    assert place.resolve() == tmp_path / "scratch/of/tiny/activations"
    (place / "residual.0").mkdir()
    (place / "residual.0/step0.h5").write_text("")
    names = [p.name for p in scratch.below(tmp_path / "results/tiny")]
    assert names == ["activations", "residual.0", "step0.h5"]
    scratch.link(s, tmp_path / "results")  # again, as each run does
    shutil.rmtree(tmp_path / "scratch")  # as sites do with what is old
    scratch.link(s, tmp_path / "results")
    assert list(place.iterdir()) == []


def test_a_folder_that_is_there_is_not_hidden(tmp_path):
    place = tmp_path / "results/tiny/basis"
    place.mkdir(parents=True)
    with pytest.raises(InputError, match=r"^storage.scratch: .*basis exists already; move it"):
        scratch.link(on_scratch(tmp_path / "scratch"), tmp_path / "results")
    place.rmdir()
    scratch.link(on_scratch(tmp_path / "scratch"), tmp_path / "results")
    with pytest.raises(InputError, match=r"links to .*scratch/tiny/activations, not to .*other"):
        scratch.link(on_scratch(tmp_path / "other"), tmp_path / "results")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot create .* \(Not a directory\); choose another"):
        scratch.link(on_scratch(tmp_path / "file"), tmp_path / "elsewhere")


def test_room_is_looked_for_where_files_will_lie(tmp_path):
    s = on_scratch(tmp_path)
    b = bill.bill(s, tmp_path / "results")
    inside = [f for f in b.files if f.path.is_relative_to(b.folder)]
    large = sum(
        f.missing for f in inside if f.path.relative_to(b.folder).parts[0] in s.storage.on_scratch
    )
    rest = b.disk - large
    assert 0 < rest < b.disk

    def said(here: int, there: int) -> list[str]:
        machine = machines.Machine(
            Path("home"), here, 10**15, 0, "CPU", scratch=Path("scratch"), scratch_disk=there,
            scratch_holds=tuple(s.storage.on_scratch),
        )  # fmt: skip
        return limits.too_large(bill.Bill(b.folder, b.lines, machine))

    assert said(rest, large) == []
    (line,) = said(rest, large - 1)
    assert "scratch has" in line
    (line,) = said(rest - 1, large)
    assert "home has" in line


def test_items_come_back_whole_or_not_at_all(tmp_path):
    made = tmp_path / "made"
    (made / "step2").mkdir(parents=True)
    (made / "step2/model").write_text("weights")
    (made / "tokens.h5").write_text("tokens")
    cache.give(tmp_path / "cache", "key", [made / "step2", made / "tokens.h5", made / "absent"])
    wanted = [tmp_path / "new/step2", tmp_path / "new/tokens.h5"]
    assert not cache.take(tmp_path / "cache", "other", wanted)
    assert cache.take(tmp_path / "cache", "key", wanted)
    assert (tmp_path / "new/step2/model").read_text() == "weights"
    assert not cache.take(tmp_path / "cache", "key", [*wanted, tmp_path / "new/absent"])
    (tmp_path / "cache/key/step2/model").write_text("else")
    assert cache.take(tmp_path / "cache", "key", wanted)  # what is there stays
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(InputError, match=r"cache/key/step2: damaged; delete .*key to make it"):
        cache.take(tmp_path / "cache", "key", wanted)
    assert not (tmp_path / "new/step2").exists()


def test_keys_follow_the_content_not_the_place(tmp_path):
    def key(text: str, name: str = "a.txt", own: Path | None = None, **more: object) -> str | None:
        (tmp_path / name).write_text(text)
        section = {"corpus": {"files": {"paths": [str(tmp_path / name)]}, **more}}
        corpus = settings.load(tiny() | section).corpus
        return cache.corpus_key(corpus, own, True)

    first = key("Some text.")
    assert key("Some text.", "b.txt") == first
    assert key("Other text.") != first
    assert key("Some text.", context=32) != first
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    with_own = key("Some text.", own=tokenizer)
    (tokenizer / "tokenizer.json").write_text("[]")
    assert len({first, with_own, key("Some text.", own=tokenizer)}) == 3
    s = settings.load(tiny())
    p, a = s.snapshots.pretrain, s.analysis
    assert cache.pretrain_key(p, a, "x") != cache.pretrain_key(p, a, "y")
    other = p.model_copy(update={"learning_rate": 1e-3})
    assert cache.pretrain_key(other, a, "x") != cache.pretrain_key(p, a, "x")
    threads = p.model_copy(update={"threads": 7})
    assert cache.pretrain_key(threads, a, "x") == cache.pretrain_key(p, a, "x")


@pytest.mark.parametrize(("revision", "known"), [(None, False), ("main", False), ("0a" * 20, True)])
def test_a_dataset_that_may_change_is_not_shared(revision, known):
    given = tiny() | {
        "corpus": {"dataset": {"name": "a/b", "revision": revision}, "pretrain_blocks": 9}
    }
    assert (cache.corpus_key(settings.load(given).corpus, None, True) is not None) == known


@pytest.mark.slow
def test_a_second_experiment_takes_what_the_first_has_made(new_checkout, tmp_path):
    """Tokens and training states, on scratch too; and the results lead there."""
    checkout = new_checkout()
    lying = {"scratch": str(tmp_path / "scratch"), "on_scratch": ["pretrain", "snapshots"]}
    shared = {
        "storage": {"cache": str(tmp_path / "cache"), **lying},
        "snapshots.steps": [0, 2, 8, 20],
        "snapshots.pretrain.steps": 20,
    }
    checkout.configure(shared)
    checkout.snakemake(f"{RESULTS}/snapshots/step8")
    assert (checkout / RESULTS / "snapshots").is_symlink()
    assert checkout.command("ontogeny", "check", "config.yaml").returncode == 0
    checkout.configure(shared | {"name": "second", "snapshots.steps": [0, 2, 8, 16, 20]})
    checkout.snakemake("results/second/snapshots/step8", "results/second/pretrain/log.csv")
    log = (checkout / "results/second/logs/corpus.log").read_text()
    assert log.startswith(f"taken from {tmp_path / 'cache'}/corpus-")
    # Only what no experiment has had yet is trained.
    log = (checkout / "results/second/logs/pretrain/20.log").read_text()
    assert "held-out loss" in log
    (key,) = (tmp_path / "cache").glob("pretrain-*")
    assert {p.name for p in key.glob("step*[0-9]")} == {f"step{t}" for t in (0, 2, 8, 16, 20)}
    first, second = (checkout / f"results/{n}/corpus/tokens.h5" for n in ("tiny", "second"))
    assert first.read_bytes() == second.read_bytes()
    model = "snapshots/step8/model.safetensors"
    assert (checkout / "results/second" / model).read_bytes() == (
        checkout / RESULTS / model
    ).read_bytes()
    assert json.loads(next(key.glob("step8.digests")).read_text())["model.safetensors"]

"""The atlas's files: their numbers against the tables, hostile text, sizes, what is not there."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HOSTILE, RESULTS
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import atlas as benchmark
from ontogeny import settings
from ontogeny.analyses.dimensionality.measure import of_decoders
from ontogeny.atlas import build, gather, pack, reads
from ontogeny.corpus.pieces import visible
from ontogeny.experiment import Experiment
from ontogeny.features.described import CLASSES, DOUBTS
from ontogeny.features.histories import direction_cosines
from ontogeny.files import InputError

ANALYSES = {"kinds", "contexts", "complexity", "dimensionality", "circuits", "passages"}


@pytest.fixture(scope="module")
def site(analysed) -> Path:
    """An atlas of two shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SHARD", 40)
        patch.setattr(build, "TEXT_FEATURES", 50)
        build.build(analysed)
    return analysed.path("atlas")


@pytest.fixture(scope="module")
def table(analysed) -> pd.DataFrame:
    features = analysed.table("features")
    return features[features["alive"]].reset_index(drop=True)


def read(site: Path, key: str) -> Any:
    return pack.read(site / "data" / f"{key}.js")


def shards(site: Path) -> list[dict[str, Any]]:
    count = len(list((site / "data/shards").iterdir()))
    return [read(site, f"shards/{i}") for i in range(count)]


def joined(site: Path, name: str, *shape: int) -> np.ndarray:
    """An array of all shards, (L, *shape)."""
    return np.concatenate([pack.unpack(one[name]).reshape(-1, *shape) for one in shards(site)])


def test_columns_are_the_tables(site, table, analysed):
    found = {name: pack.unpack(column) for name, column in read(site, "features").items()}
    assert found["feature"].tolist() == table["feature"].tolist()
    assert found["peak"].tolist() == table["peak_snapshot_index"].tolist()
    names = {"onset": "onset_step", "lifetime": "lifetime", "strength": "peak_strength"}
    names |= {"density": "density", "cosine": "matched_cosine", "settled": "settled_step"}
    for ours, theirs in names.items():
        np.testing.assert_array_equal(found[ours], table[theirs].to_numpy(np.float32), ours)
    classes = read(site, "experiment")["classes"]
    assert classes == [*CLASSES, "doubtful"]
    trust = analysed.table("trust").set_index("feature").loc[table["feature"], list(DOUBTS)]
    of_class = table.assign(doubtful=trust.any(axis=1).to_numpy())
    for bit, name in enumerate(classes):
        assert ((found["class"] & 1 << bit) > 0).tolist() == of_class[name].tolist()
    for bit, name in enumerate(DOUBTS):
        assert ((found["doubts"] & 1 << bit) > 0).tolist() == trust[name].tolist()
    kinds = analysed.table("kinds").set_index("feature")["kind"]
    about = read(site, "experiment")
    causes = analysed.table("kinds").set_index("feature")["cause"]
    untested = 0
    for feature, kind in zip(table["feature"], found["kind"], strict=True):
        own = kinds.get(feature, "none")
        if own == "none" and causes.get(feature, "untested") == "untested":
            own, untested = "untested", untested + 1
        assert about["kinds"][kind] == own
    assert untested == pack.unpack(read(site, "features")["kind"]).tolist().count(
        about["kinds"].index("untested")
    )
    span = analysed.table("span")
    span = span[span["run"] == "replaced"].set_index("feature")["span"].reindex(table["feature"])
    assert span.notna().sum() > 20
    np.testing.assert_array_equal(found["complexity"], span.to_numpy(np.float32))


def test_untested_is_not_none():
    table = pd.DataFrame(
        {
            "feature": [2, 3, 5, 8],
            "kind": ["none", "none", "context", "context"],
            "cause": ["none", "untested", "context", "untested"],
        }
    )
    assert gather._kinds(table)["kind"].tolist() == ["none", "untested", "context", "context"]


def test_histories_are_the_decoders_within_what_is_stored(site, table, analysed):
    first, second = (analysed.crosscoder(seed=seed) for seed in (0, 1))
    living = table["feature"].to_numpy()
    W = first.W_dec.numpy()[living]
    n, L = W.shape[1], len(living)
    scale = np.concatenate([one["scale"] for one in shards(site)])[:, None]
    level = joined(site, "strength", 2, n)
    strength = np.where(level == pack.NO_LEVEL, np.nan, level / 65534.0 * scale[:, None])
    own = analysed.table("strengths").pivot(
        index="feature", columns="snapshot_index", values="strength"
    )
    np.testing.assert_allclose(strength[:, 0], own.loc[living], atol=1e-5 * scale.max())
    matches = analysed.table("matches").set_index("feature")
    partner = np.concatenate([one["partner"] for one in shards(site)])[:, 0]
    for i, feature in enumerate(living):
        row = matches.loc[feature]
        if row["cosine"] >= analysed.settings.analysis.matched_cosine:
            assert partner[i] == row["partner"]
            np.testing.assert_allclose(
                strength[i, 1], second.strength[partner[i]], atol=1e-5 * scale[i, 0]
            )
        else:
            assert partner[i] == -1
            assert np.isnan(strength[i, 1]).all()
    assert 0 < (partner >= 0).sum() < L

    cosine = joined(site, "cosine", n * (n - 1) // 2)
    wanted = direction_cosines(W, analysed.settings.analysis.direction_floor)
    for c, (i, j) in enumerate(itertools.combinations(range(n), 2)):
        here = np.where(cosine[:, c] == pack.NO_COSINE, np.nan, cosine[:, c] / 127)
        np.testing.assert_allclose(here, wanted[:, i, j], atol=0.5 / 127 + 1e-6)
    curves = np.concatenate([pack.unpack(read(site, f"curves/{i}")).reshape(-1, n) for i in (0, 1)])
    share = own.loc[living].to_numpy() / own.loc[living].to_numpy().max(1, keepdims=True)
    np.testing.assert_allclose(curves / 255, share, atol=0.5 / 255 + 1e-6)
    D = joined(site, "dimensionality", n) / 255
    np.testing.assert_allclose(D, of_decoders(W.swapaxes(0, 1)), atol=0.5 / 255 + 1e-9)


def test_what_the_site_is_made_from_is_what_it_reads(analysed, monkeypatch):
    """Every file that the map is asked for is one that the rule watches, and the other way."""
    watched = {path for paths in reads.files(analysed).values() for path in paths}
    asked: set[Path] = set()
    path_of = Experiment.path

    def path(self, product, **keys):
        asked.add(path_of(self, product, **keys))
        return path_of(self, product, **keys)

    monkeypatch.setattr(Experiment, "path", path)
    gather.gather(analysed)
    monkeypatch.undo()
    assert {path for path in asked if path.is_file()} - {analysed.path("config")} == watched


def test_nearest_features_are_the_nearest(site, table, analysed):
    W = analysed.crosscoder().W_dec[torch.tensor(table["feature"].to_numpy())]
    unit = torch.nn.functional.normalize(W.flatten(1), dim=1)
    cosines = (unit @ unit.T).numpy()
    np.fill_diagonal(cosines, -2)
    near, value = joined(site, "near", 8), joined(site, "near_cosine", 8) / 32767
    rows = np.arange(len(near))[:, None]
    np.testing.assert_allclose(value, -np.sort(-cosines)[:, :8], atol=2e-5)
    np.testing.assert_allclose(cosines[rows, near], value, atol=2e-5)


def test_features_that_are_not_shown_are_not_told_as_active_together():
    """A feature that was active in training only has contexts, but no page."""
    features = [SimpleNamespace(together=[(3, 0.5), (4, 0.2), (9, 0.1)]),
                SimpleNamespace(together=[(4, 0.7)])]  # fmt: skip
    found = {name: pack.unpack(part) for name, part in
             build._together(features, {1: 0, 3: 1, 9: 2}).items()}  # fmt: skip
    assert found["found"].tolist() == [2, 0]
    assert found["place"].tolist() == [1, 2]
    np.testing.assert_allclose(found["share"] / 65534, [0.5, 0.1], atol=1e-5)


def test_attribution_is_the_tables(site, table, analysed):
    every = analysed.table("attribution")
    told = every.groupby("feature")["told"].transform("any")
    assert 0 < told.sum() < len(told)
    wanted = every[told].pivot(index="feature", columns="step", values="attribution")
    place = {feature: i for i, feature in enumerate(table["feature"])}
    given = [i for i in wanted.index if i in place]
    assert len(given) > 3
    seen = 0
    for low, one in zip((0, 40), shards(site), strict=True):
        a = {name: pack.unpack(part) for name, part in one["attribution"].items()}
        values = a["value"].reshape(-1, wanted.shape[1]) / 32767 * a["scale"][:, None]
        for owner, task, curve, scale in zip(
            a["feature"], a["task"], values, a["scale"], strict=True
        ):
            assert task == 0
            feature = table["feature"][low + owner]
            np.testing.assert_allclose(curve, wanted.loc[feature], atol=2e-5 * scale)
            seen += 1
    assert seen == len(given)
    task = read(site, "tasks")["induction"]
    largest = wanted.loc[given].abs().max(axis=1)
    assert pack.unpack(task["place"]).tolist() == [place[i] for i in given]
    np.testing.assert_allclose(np.abs(pack.unpack(task["value"])), largest, rtol=1e-6)


def test_contexts_and_lens_are_the_stores(site, table, analysed):
    store = analysed.contexts()
    words = read(site, "words")
    place = 0
    for one in shards(site):
        c = {name: pack.unpack(part) for name, part in one["contexts"].items()}
        tokens, lit = iter(c["word"]), iter(zip(c["where"], c["how"], strict=True))
        entry = iter(range(len(c["block"])))
        t = {name: pack.unpack(part) for name, part in one["together"].items()}
        beside = iter(zip(t["place"], t["share"] / 65534, strict=True))
        lens = one["lens"]
        k, P = lens["tokens"], 6
        word = pack.unpack(lens["word"]).reshape(-1, P, 2, k)
        value = pack.unpack(lens["value"]).reshape(-1, P, 2, k) / 32767
        for i, found in enumerate(c["found"].reshape(-1, 3)):
            f = store.feature(int(table["feature"][place]))
            place += 1
            assert found.tolist() == [len(f.top), len(f.quantiles), len(f.near_misses)]
            assert t["found"][i] == len(f.together)
            for (other, share), (at, level) in zip(f.together, beside, strict=False):
                assert table["feature"][at] == other
                assert level == pytest.approx(share, abs=1e-5)
            largest = max([t.value for t in (*f.top, *f.quantiles)], default=1)
            for context in (*f.top, *f.quantiles, *f.near_misses):
                e = next(entry)
                assert (c["block"][e], c["offset"][e]) == (context.block, context.offset)
                assert c["position"][e] == context.offset - context.start
                assert c["value"][e] == np.float32(context.value)
                if context.quantile is None:
                    assert c["quantile"][e] == pack.NO_LEVEL
                else:
                    assert c["quantile"][e] / 65534 == pytest.approx(context.quantile, abs=1e-5)
                assert [words[next(tokens)] for _ in range(c["size"][e])] == [
                    visible(text) for text in context.texts
                ]
                shade = np.zeros(len(context.texts))
                for where, how in itertools.islice(lit, int(c["lit"][e])):
                    shade[where] = np.nan if how == 255 else how / 254
                wanted = context.activations / largest
                np.testing.assert_allclose(shade, wanted, atol=0.5 / 254 + 1e-3)
            for p, known in enumerate(f.lens):
                for side, given in enumerate((known.promoted, known.suppressed)):
                    assert [words[w] for w in word[i, p, side]] == [visible(t[0]) for t in given]
                    logits = value[i, p, side] * lens["scale"][i]
                    np.testing.assert_allclose(
                        logits, [t[2] for t in given], atol=2e-5 * lens["scale"][i]
                    )
    assert place == len(table)


def test_text_that_is_searched_is_that_of_contexts(site, table, analysed):
    store = analysed.contexts()
    parts = [read(site, f"text/{i}") for i in (0, 1)]
    lines = parts[0]["contexts"] + parts[1]["contexts"]
    assert [len(parts[0]["promoted"]), len(lines)] == [50, len(table)]
    values = parts[0]["values"] + parts[1]["values"]
    for feature, own, strong in zip(table["feature"], lines, values, strict=True):
        top = store.feature(int(feature)).top
        assert len(own) == min(4, len(top))
        np.testing.assert_allclose(strong, [context.value for context in top[:4]], rtol=1e-5)
        for line, context in zip(own, top, strict=False):
            before, token, after = line.split("\t")
            texts = [visible(text) for text in context.texts]
            at = context.offset - context.start
            while texts[at] == "":  # a later byte of a character
                at -= 1
            assert token == texts[at]
            assert before == "".join(texts[max(0, at - 12) : at])
            assert after == "".join(texts[at + 1 : at + 5])


def test_hostile_text_is_data(site):
    files = [*site.rglob("data/**/*.js")]
    assert len(files) >= 8
    words = read(site, "words")
    for piece in HOSTILE:
        assert any(visible(piece) in word for word in words), piece
    for path in files:
        raw = path.read_bytes()
        assert raw.isascii()
        assert b"<" not in raw
        assert not set(raw) & {*range(10), *range(11, 32), 127}
    text = json.dumps(words)
    assert not any(f"\\u{code:04x}" in text for code in (0, 0x1B, 0x202E, 0x2028, 0x85))


def test_the_page_reads_nothing_from_elsewhere_and_makes_no_markup():
    files = [path for path in build.PAGE.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".html", ".css", ".js"}
    assert sum(path.stat().st_size for path in files) < 180_000
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https:" not in text
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, (path.name, word)


def test_parts_that_were_not_analysed_are_told(analysed, tmp_path):
    settings = analysed.settings.model_copy(update={"analyses": ["induction"]})
    bare = Experiment(analysed.folder, settings)  # whose files lie there all the same
    assert ANALYSES.isdisjoint(reads.files(bare))
    build.write(gather.gather(bare), tmp_path / "atlas")
    about = read(tmp_path / "atlas", "experiment")
    assert set(about["missing"]) == ANALYSES
    assert about["missing"]["kinds"].endswith("kinds is not among its analyses.")
    assert about["contexts"] is None
    assert about["tasks"] == []
    assert {"kind", "complexity"}.isdisjoint(read(tmp_path / "atlas", "features"))
    assert set(read(tmp_path / "atlas", "shards/0")) == {
        "scale", "strength", "partner", "cosine", "near", "near_cosine",
    }  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "atlas/data").iterdir()) == [
        "curves", "experiment.js", "features.js", "shards",
    ]  # fmt: skip


def test_the_experiment_in_short_is_the_summary(finished):
    about = read(finished / RESULTS / "atlas", "experiment")
    summary = json.loads((finished / RESULTS / "summary.json").read_text())
    assert about["explained_variance"] == pytest.approx(
        summary["explained_variance_total_mean"], rel=1e-5
    )
    assert about["l0"] == pytest.approx(summary["l0_mean"], rel=1e-5)
    assert about["living"] == summary["living_features"]
    assert about["turning"]["step"] == pytest.approx(summary["turning_point_step"], rel=1e-5)
    assert set(about["missing"]) == {"contexts", "complexity", "circuits", "passages"}
    phases = pd.read_csv(finished / RESULTS / "phases/phases.csv")
    np.testing.assert_allclose(about["curve"]["loss"], phases["loss"], rtol=1e-5)
    assert summary["wall_seconds_atlas"] > 0


def test_a_site_is_replaced_whole_or_left(analysed, tmp_path, monkeypatch):
    contents = gather.gather(analysed)
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas/index.html").write_text("earlier")

    def fail(*_):
        raise InputError("no")

    with monkeypatch.context() as patch:
        patch.setattr(build, "_histories", fail)
        with pytest.raises(InputError, match="no"):
            build.write(contents, tmp_path / "atlas")
    assert [p.name for p in tmp_path.rglob("*")] == ["atlas", "index.html"]
    assert (tmp_path / "atlas/index.html").read_text() == "earlier"


def test_contexts_of_another_crosscoder_are_refused(analysed, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(analysed.folder, folder, ignore=shutil.ignore_patterns("atlas"))
    copy = Experiment(folder, analysed.settings)
    path = copy.path("features")
    features = pd.read_parquet(path)
    features["alive"] = True
    features.to_parquet(path)
    with pytest.raises(InputError, match="contexts of another crosscoder"):
        gather.gather(copy)
    features["alive"] = False
    features.to_parquet(path)
    with pytest.raises(InputError, match="no living feature to show; train"):
        gather.gather(copy)


def test_ten_thousand_features_take_less_than_60_mb(tmp_path):
    """By the bytes of 512 features of the default experiment's sizes, through the same writer."""
    build.write(benchmark.synthetic(512, tmp_path / "work"), tmp_path / "atlas")
    each = {"shards": 0, "text": 0, "features": 0}
    for path in (tmp_path / "atlas/data").rglob("*.js"):
        part = path.relative_to(tmp_path / "atlas/data").parts[0].removesuffix(".js")
        if part in each:
            each[part] += path.stat().st_size
    others = sum(p.stat().st_size for p in (tmp_path / "atlas").rglob("*") if p.is_file())
    others -= sum(each.values())
    assert sum(each.values()) / 512 * 10_000 + others < 60e6
    assert max(p.stat().st_size for p in (tmp_path / "atlas/data/shards").iterdir()) < 1e6


@pytest.mark.slow
def test_without_histories_the_reason_is_told(experiment):
    experiment.configure({"snapshots.steps": [40]})
    done = experiment.command("snakemake", "--cores", "1", "-n", "atlas")
    assert done.returncode != 0
    assert "atlas: batchtopk has no feature histories to show" in done.stdout + done.stderr
    assert "atlas" not in experiment.would_run()


def test_a_model_of_ones_own_is_told_with_its_architecture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"vocab_size": 30, "n_positions": 16, "n_embd": 8, "n_layer": 3, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained("run/step5")
    given = {
        "name": "mine",
        "snapshots": {"steps": [5], "local": {"folders": "run/step{step}"}},
        "activations": {"layers": [0]},
        "crosscoders": {"main": {"inputs": {"layers": [0]}, "features": 16, "steps": 1}},
        "primary": "main",
    }
    experiment = Experiment(tmp_path / "results/mine", settings.load(given))
    assert gather._model(experiment) == "run/step{step}: gpt2, 3 layers, width 8"
    shutil.rmtree("run")
    assert gather._model(experiment) == "run/step{step}"

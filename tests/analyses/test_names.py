"""Names by rule from planted contexts, and which features the range chart shows."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from conftest import tiny

from ontogeny import settings
from ontogeny.analyses.names import figure, measure
from ontogeny.analyses.names.measure import Context, name, too_frequent_for


def contexts(*endings: tuple[str, ...], offset: int = 40) -> list[Context]:
    """Contexts with other tokens before each ending."""
    return [Context((f"w{i}", f"↵{i}x", *ending), offset) for i, ending in enumerate(endings)]


PLANTED = {
    "pair": (contexts(*[("self", ".")] * 5), "self.", "pair", 1.0),
    "token": (contexts(*[(f"a{i}", " return") for i in range(5)]), "return", "token", 1.0),
    "four of five": (
        contexts(*[(f"a{i}", " if") for i in range(4)], ("b", " for")), "if", "token", 0.8,
    ),
    "previous": (contexts(*[("(", f"a{i}") for i in range(5)]), "after (", "previous", 1.0),
    "two before": (
        contexts(*[(" def", f"a{i}", f"b{i}") for i in range(5)]), "two after def", "second", 1.0,
    ),
    "spaces and breaks": (
        contexts(*[(f"a{i}", "↵    ") for i in range(5)]), "↵␣␣␣␣", "token", 1.0,
    ),
    "start": (contexts(*[(f"a{i}", f"b{i}") for i in range(5)], offset=2), "start of window",
              "start", 1.0),
    "comment": (contexts(*[("↵", "  # ", f"a{i}", f"b{i}", f"c{i}") for i in range(5)]),
                "in a comment", "comment", 1.0),
    "brackets": (contexts(*[(f"f{i}(", f"a{i}", f"b{i}") for i in range(5)]),
                 "inside brackets", "brackets", 1.0),
    "quotes in four of five": (
        contexts(*[('"', f"a{i}", f"b{i}", f"c{i}") for i in range(4)], ("a", "b", "c")),
        "", "", 0.0,
    ),
    "too few": (contexts(*[("self", ".")] * 4), "", "", 0.0),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTED)
def test_a_feature_is_named_after_what_its_contexts_share(case):
    given, label, rule, agreement = PLANTED[case]
    assert name(given, 5, 0.8) == (label, rule, pytest.approx(agreement))


@pytest.mark.parametrize(
    ("line", "marks"),
    [
        ("it's what the dogs' owner said", 1),
        ("I'm sure they'd say we've", 0),
        ("x = f'abc", 1),
        ("say('it''s", 3),
        ('print("a", \'b', 3),
        ("name = rb'\\d' + b'c'", 4),
    ],
)
def test_an_apostrophe_is_no_quotation_mark(line, marks):
    assert Context((f"before ' ↵{line}", "next"), 9).quotation_marks == marks


def test_a_feature_of_induction_says_that_its_token_comes_again():
    assert name(contexts(*[(f"a{i}", "_id") for i in range(5)]), 5, 0.8, again=True)[0] == (
        "_id, again"
    )
    unnamed = contexts(*[(f"a{i}", f"b{i}", f"c{i}") for i in range(5)])
    assert name(unnamed, 5, 0.8, again=True)[0] == "a name, again"


def test_names_are_written_for_every_feature_with_contexts(tmp_path):
    tokens = [["x", f"a{i}", "self", "."] for i in range(5)] + [[f"a{i}", "b"] for i in range(2)]
    table = pd.DataFrame({"feature": [7] * 5 + [9] * 2, "rank": [1, 2, 3, 4, 5, 1, 2]})
    table = table.assign(tokens=tokens, position=[3] * 5 + [1] * 2, offset=20)
    table.to_parquet(tmp_path / "contexts.parquet")
    s = settings.load(tiny({"analyses": ["names"]}))
    features = pd.DataFrame({"feature": [7, 9], "density": [0.05, 0.01]})
    features.to_parquet(tmp_path / "features.parquet")
    inputs = tmp_path / "contexts.parquet", tmp_path / "features.parquet"
    measure.measure(s, *inputs, None, tmp_path / "names.parquet")
    named = pd.read_parquet(tmp_path / "names.parquet")
    assert named[["feature", "name"]].to_numpy().tolist() == [[7, "self."], [9, ""]]
    features.assign(density=0.051).to_parquet(tmp_path / "features.parquet")
    measure.measure(s, *inputs, None, tmp_path / "names.parquet")
    assert pd.read_parquet(tmp_path / "names.parquet")["name"].tolist() == ["", ""]


def test_a_frequent_feature_is_not_named_after_a_token_or_the_start():
    assert too_frequent_for(6 / 256, context=256) == set()
    assert too_frequent_for(7 / 256, 256) == {"start"}
    assert too_frequent_for(0.06, 256) == set(measure.RULES)
    inside = contexts(*[("(", f"a{i}", f"b{i}") for i in range(5)], offset=2)
    assert name(inside, 5, 0.8)[1] == "second"
    assert name(inside, 5, 0.8, without=measure.RULES)[:2] == ("inside brackets", "brackets")


def test_the_chart_shows_matched_features_of_every_kind_in_order_of_onset():
    rng = np.random.default_rng(0)
    F = 400
    living = pd.DataFrame(
        {
            "feature": np.arange(F),
            "matched": rng.random(F) < 0.5,
            "name": [f"n{i % 300}" if i % 4 else "" for i in range(F)],
            "kind": np.where(np.arange(F) % 50 == 1, "induction", "previous_token"),
            "onset_step": rng.random(F) * 1000,
            "density": rng.random(F),
        }
    )
    shown = figure.choose(living, 30)
    assert len(shown) == 30
    assert shown["matched"].all()
    assert shown["name"].is_unique
    assert "" not in set(shown["name"])
    assert shown["onset_step"].is_monotonic_increasing
    assert {"induction", "previous_token"} == set(shown["kind"])
    onsets = shown.loc[shown["kind"] == "previous_token", "onset_step"]
    assert np.histogram(onsets, 4, (0, 1000))[0].min() >= 3
    # Where nothing is matched, all named features may be shown.
    assert len(figure.choose(living.assign(matched=False), 30)) == 30


def test_the_chart_draws_what_it_says(tmp_path):
    steps = [0, 10, 100, 1000]
    features = pd.DataFrame({"feature": range(4), "alive": [True] * 3 + [False]})
    features = features.assign(
        matched=[True, True, False, True],
        matched_cosine=0.9,
        onset_step=[50.0, 5, 1, 1],
        density=0.1,
    )
    strengths = pd.DataFrame(
        [(f, i + 1, s, (i + f) / 6) for f in range(4) for i, s in enumerate(steps)],
        columns=["feature", "snapshot_index", "step", "normalised_strength"],
    )
    names = pd.DataFrame({"feature": range(4), "name": ["self.", "after (", "in", "x"]})
    kinds = pd.DataFrame({"feature": range(4), "kind": ["none", "previous_token", "none", "none"]})
    tables = {"features": features, "strengths": strengths, "names": names, "kinds": kinds}
    for name_, table in tables.items():
        table.to_parquet(tmp_path / f"{name_}.parquet")
    pd.DataFrame({"step": steps, "loss": [7.0, 6, 4, 2]}).to_csv(tmp_path / "phases.csv")
    pd.DataFrame({"step": [0, 1000], "copying_gain": [0.0, 1]}).to_csv(tmp_path / "log.csv")
    levels = {"unigram_cross_entropy": 6.0, "bigram_cross_entropy": 4.0}
    (tmp_path / "levels.json").write_text(json.dumps(levels))
    (tmp_path / "turning.json").write_text(json.dumps({"all": {"step": 50, "low": 10, "high": 90}}))
    figure.draw(
        settings.load(tiny({"analyses": ["names"]})),
        *(tmp_path / f"{name_}.parquet" for name_ in tables),
        *(tmp_path / file for file in ("phases.csv", "levels.json", "turning.json", "log.csv")),
        tmp_path / "ranges",
    )
    drawn = pd.read_csv(tmp_path / "ranges.csv")
    lives = drawn[drawn["panel"] == "feature"]
    assert list(dict.fromkeys(lives["name"])) == ["after (", "self."]
    first = strengths.loc[strengths["feature"] == 1, "normalised_strength"]
    assert lives["value"].to_numpy()[:4] == pytest.approx(first)
    assert list(drawn.loc[drawn["panel"] == "loss", "value"]) == [7, 6, 4, 2]
    assert (tmp_path / "ranges.png").stat().st_size > 1000

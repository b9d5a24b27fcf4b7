"""What the start page names, on tables whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ontogeny.atlas import pack, start
from ontogeny.features.contexts import Context

LEVELS = {"unigram_crossing_step": 36.0, "bigram_crossing_step": 430.0}


def features(**columns) -> pd.DataFrame:
    """Six features: two of the first snapshot, and four that emerge at 5, 20, 100 and 900."""
    onset = np.array([0.0, 0.0, 5.0, 20.0, 100.0, 900.0])
    table = {
        "feature": [3, 5, 8, 9, 11, 40],
        "onset_step": onset,
        "settled_step": onset + 100,
        "initialisation": onset == 0,
        "emergent": onset > 0,
        "density": 0.01,
        "matched": True,
        "matched_cosine": [0.9, 0.8, 0.95, 0.85, 0.9, 0.99],
        "kind": "context",
        "name": ["a", "", "b", "c", "", "d"],
    }
    made = pd.DataFrame(table | columns)
    return made.assign(trusted=start.trusted(made, held_out=10_000))


def chosen(table: pd.DataFrame, levels=LEVELS, first: float = 1.0):
    strength = np.tile([1.0, 2.0, 4.0], (len(table), 1))
    strength[2, 0] = first  # of the earliest that emerges
    return start.choose(table, levels, strength, None)


def test_phases_end_where_the_loss_passes_a_level():
    found = chosen(features())["phases"]
    assert [(p["after"], p["until"], p["low"], p["high"]) for p in found] == [
        (None, "first", None, None),
        (None, "unigram", None, 36.0),
        ("unigram", "bigram", 36.0, 430.0),
        ("bigram", None, 430.0, None),
    ]
    assert [[one["place"] for one in p["features"]] for p in found] == [[0, 1], [2, 3], [4], [5]]
    assert [p["count"] for p in found] == [2, 2, 1, 1]
    curve = pack.unpack(found[0]["features"][0]["curve"])
    assert curve.tolist() == [64, 128, 255]


@pytest.mark.parametrize(
    ("levels", "until", "counts"),
    [
        (LEVELS | {"bigram_crossing_step": None}, ["first", "unigram", None], [2, 2, 2]),
        (LEVELS | {"unigram_crossing_step": None}, ["first", "bigram", None], [2, 3, 1]),
        ({}, ["first", None], [2, 4]),
    ],
)
def test_a_level_that_is_never_passed_ends_no_phase(levels, until, counts):
    found = chosen(features(), levels)["phases"]
    assert [phase["until"] for phase in found] == until
    assert [phase["count"] for phase in found] == counts


def test_the_earliest_is_one_that_can_be_trusted():
    found = chosen(features())
    assert (found["earliest"]["place"], found["first"]) == (2, None)
    found = chosen(features(), first=1.01)  # it was there already, in part
    assert (found["earliest"]["place"], found["first"]) == (3, 2)
    alone = [True, True, False, True, True, True]
    found = chosen(features(matched=alone))
    assert (found["earliest"]["place"], found["first"]) == (3, 2)
    found = chosen(features(matched=alone, relay=[False, False, False, True, False, False]))
    assert (found["earliest"]["place"], found["first"]) == (4, 2)
    rare = [0.01, 0.01, 0.0019, 0.0020, 0.01, 0.01]  # of 10,000: 19 and 20
    assert chosen(features(density=rare))["earliest"]["place"] == 3
    assert chosen(features(matched=False))["earliest"] is None
    one_seed = features(matched=False, matched_cosine=np.nan)
    assert chosen(one_seed)["earliest"]["place"] == 2


def test_telling_features_are_trusted_of_a_kind_and_named():
    n = 30
    onset = np.arange(1.0, n + 1)
    table = pd.DataFrame({
        "feature": np.arange(n), "onset_step": onset, "settled_step": onset, "emergent": True,
        "initialisation": False, "density": 0.01, "matched": np.arange(n) % 2 == 0,
        "matched_cosine": 0.7 + onset / 100, "kind": ["context"] * 15 + ["none"] * 15,
        "name": [f"name {i}" for i in range(n)],
    })  # fmt: skip
    table = table.assign(trusted=start.trusted(table, 10_000))
    places = start.telling(table)
    assert len(places) == start.TELLING
    # The eight matched ones of a kind, and of the other matched ones those of the best match.
    assert places.tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 26, 28]
    table.loc[[2, 4], "name"] = "name 0"  # one name and kind: the better match stands for them
    assert start.telling(table).tolist() == [4, 6, 8, 10, 12, 14, 22, 24, 26, 28]
    table["name"] = ""  # no name is not one name
    assert start.telling(table).tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 26, 28]
    table = table.assign(name=[f"name {i}" for i in range(n)], strongest=table["feature"] >= 25)
    assert start.telling(table).tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 22, 24]


def test_a_later_byte_of_a_character_shows_as_the_character():
    texts = ["one", " “", "", "", "two", "three"]
    context = Context(0, 12, 10, 1.0, None, np.arange(6), texts, np.zeros(6))
    assert start.line(context) == "one\t “\ttwothree"
    assert start.line(context, before=0, after=3) == "\t “\ttwo"
    first = SimpleNamespace(offset=10, start=10, texts=["", "a"])
    assert start.own(first) == 0

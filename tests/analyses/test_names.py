"""Names by rule from planted contexts, and which features the range chart shows."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
from conftest import tiny

from ontogeny import registry, settings
from ontogeny.analyses.names import figure, measure
from ontogeny.analyses.names.choose import Evidence, Name, choose, surprise, tail
from ontogeny.analyses.names.numbers import numbers
from ontogeny.analyses.names.rules import RULES, labels_of, shortened, shown
from ontogeny.analyses.names.settings import Names
from ontogeny.analyses.names.text import Context
from ontogeny.features import contexts as stored

FAR = ["x↵"] * 20  # tokens before, so that the position is not early in its window


def seen(rule: str, *tokens: str, after: tuple[str, ...] = (), far: bool = True) -> set[str]:
    """What a rule sees at the last of some tokens."""
    block = [*(FAR if far else []), *tokens, *after]
    labels = labels_of(Context(block, len(block) - 1 - len(after)), copies=True)
    return {label for name, label in labels if name == rule}


# Each rule: tokens to the active one, what it sees there, and tokens where it does not see that.
PLANTED = {
    "three": (("a", "b", "c"), "abc", ("a", "c")),
    "pair": (("self", "."), "self.", ("self", ",")),
    "word": (("x ", "con", "fig"), "config", ("con", ".", "fig")),
    "token": (("a", " return"), "return", ("return", "a")),
    "previous": (("(", "a"), "(", ("(", "b", "a")),
    "previous_two": (("%", "S", ":"), "%S", ("%", "s", ":")),
    "second": ((" def", "a", "b"), "def", (" def", "b")),
    "word_before": ((" def", " na", "me"), "def", (" def", " up", " na", "me")),
    "soon": (("isinst", "ance", "(", "a", ",", "b"), "isinstance", ("is", "in", "(", "a")),
    "run": (("http", "://", "a", ".", "b"), "/", ("http", "://", "a", " b")),
    "repeat": (("one", "two", "one"), "a repeated token", ("one", "two", "three")),
    "copy": (("a", "b", "c", "a"), "b", ("a", "b", "c", "c", "d")),
    "call": (("range", "(", "len", "(", "a", ")", ","), "range(", ("range", "(", ")", "a")),
    "line": (("↵", " import", " a", " b"), "import", ("↵", " from", " import", " a")),
    "comment": (("↵", "  # ", "a", "b"), "in a comment", ("↵", "a ", "#", "b", "↵", "c")),
    "quotes": (("say ", '"', "a", " b"), "inside quotes", ('"', "a", '"', "b")),
    "brackets": (("f", "(", "a", "b"), "inside brackets", ("f", "(", "a", ")", "b")),
    "indent": (("↵", "    ", "a", "b"), "4", ("↵", "a", "b")),
    "class": (("a", " 17"), "digits", ("a", " x7")),
    "class_after": (('"', "The"), 'capital after "', ('"', "the")),
    "class_after_class": (("(", "'"), "quote after opening bracket", ("a", "'")),
    "previous_class": (("↵    ", "a"), "line break", ("↵", "    ", "a")),
}  # fmt: skip


@pytest.mark.parametrize("rule", PLANTED)
def test_a_rule_sees_what_is_planted_and_declines_elsewhere(rule):
    tokens, label, elsewhere = PLANTED[rule]
    assert label in seen(rule, *tokens)
    assert label not in seen(rule, *elsewhere)


def test_rules_of_what_follows_and_of_the_window():
    assert seen("next", "a", after=(" of",)) == {"of"}
    assert seen("next", "a") == set()  # the block ends
    assert seen("next_class", "a", after=(")",)) == {"closing bracket"}
    every = {"at first token", "at start of window", "early in window"}
    assert seen("start", "a", far=False) == every
    assert seen("start", *["a"] * 4, far=False) == every - {"at first token"}
    assert seen("start", *["a"] * 16, far=False) == {"early in window"}
    assert seen("start", *["a"] * 17, far=False) == set()
    assert set(PLANTED) | {"next", "next_class", "start"} == set(RULES)


def test_copies_are_asked_of_features_that_depend_on_them():
    block = Context([*FAR, "a", "b", "c", "a"], len(FAR) + 3)
    rules = {rule for rule, _ in labels_of(block, copies=False)}
    assert {"copy", "repeat"} & rules == set()
    # Of two earlier copies the one with the same token before it.
    assert Context(["q", "a", "1", "r", "a", "2", "q", "a"], 7).followed == "1"


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
    assert Context([f"before ' ↵{line}", "next"], 1).quotation_marks == marks


@pytest.mark.parametrize(
    ("token", "said"),
    [(" of", "of"), ("↵       ", "↵␣⁷"), (" ", "␣"), ("  #", "␣␣#"), (" = None", "= None")],
)
def test_spaces_show_in_names(token, said):
    assert shown(token) == said


# Which name wins


def chosen(strong, ranged=None, text=None, least_range=0.5) -> Name:
    """The name of contexts that have labels, each as strong as the others."""
    shares = defaultdict(lambda: 0.01, text or {})
    as_strong = [(set(labels), 1.0) for labels in strong]
    over = as_strong if ranged is None else [(set(labels), 1.0) for labels in ranged]
    return choose(Evidence(as_strong, over), shares, 0.8, least_range)


IF, FOR, COMMENT = ("token", "if"), ("token", "for"), ("comment", "in a comment")


def test_a_name_needs_four_of_five_contexts_and_as_much_of_their_activation():
    assert chosen([[IF]] * 4 + [[]]) == Name("if", "token", 0.8, 0.8, 0.01)
    assert chosen([[IF]] * 3 + [[]] * 2) == Name()
    strong = [({IF}, 1.0)] * 4 + [(set(), 2.0)]  # the strongest is none
    assert choose(Evidence(strong, strong), defaultdict(lambda: 0.01), 0.8, 0.5) == Name()


def test_a_name_is_rare_in_the_text():
    assert chosen([[IF]] * 10, text={IF: 0.19}).name == "if"
    assert chosen([[IF]] * 10, text={IF: 0.21}) == Name()  # less than LIFT times as often
    assert chosen([[IF]] * 5, text={IF: 0.15}).name == "if"  # 0.15⁵ is 0.00008
    assert chosen([[IF]] * 5, text={IF: 0.16}) == Name()
    assert tail(5, 4, 0.1) == pytest.approx(5 * 0.1**4 * 0.9 + 0.1**5)
    assert tail(3000, 1500, 0.5) == pytest.approx(0.507, abs=0.001)
    assert surprise(4, 4, 0.1) == pytest.approx(4 * np.log(10))
    assert surprise(10, 1, 0.1) == 0


def test_a_set_covers_what_one_token_does_not():
    half = [[IF]] * 3 + [[FOR]] * 3
    assert chosen(half).name == "for or if"
    assert chosen(half, text={IF: 0.06, FOR: 0.06}) == Name()  # its second member costs too much
    assert chosen([[IF]] * 5 + [[FOR]]).name == "if"  # once is no member
    after = [[("previous", "(")]] * 4 + [[("previous", ",")]] * 3 + [[("previous", "[")]] * 3
    assert chosen(after).name == "after ( or , or ["


def test_a_name_that_only_the_strongest_have_says_so():
    strong = [[IF, ("previous", "else")]] * 5
    assert chosen(strong, [[IF]] * 2 + [[]] * 3).name == "strongest on if"
    assert chosen(strong, [[("previous", "else")]] * 5).name == "after else"
    early = [[("start", "early in window")]] * 5
    assert chosen(early, [[]]).name == "strongest early in window"
    assert chosen(strong, [[]], least_range=0).name == "if"


def test_the_most_specific_name_wins_while_it_covers_the_contexts():
    dot, pair = ("token", "."), ("pair", "self.")
    both = [[dot, pair]] * 5
    rare = {dot: 0.03, pair: 0.005}
    assert chosen(both, text=rare).name == "self."
    assert chosen(both, [[dot, pair]] * 3 + [[dot]] * 5, rare).name == "."


def test_a_loose_rule_has_to_hold_in_all_and_a_cause_needs_no_chance():
    assert chosen([[COMMENT]] * 10).name == "in a comment"
    assert chosen([[COMMENT]] * 9 + [[]]) == Name()
    again = ("repeat", "a repeated token")
    assert chosen([[again]] * 5, text={again: 0.6}).name == "a repeated token"


# The table


@pytest.fixture(scope="module")
def named(analysed, tmp_path_factory):
    """Settings, paths and the table of a small run, whose frequent tokens are hostile."""
    folder = tmp_path_factory.mktemp("names")
    given = settings.load(analysed.settings.model_dump() | {"name": "named"})
    paths = [analysed.path(product) for product in ("contexts", "tokens", "kinds")]
    measure.measure(given, *paths, folder / "names.parquet")
    return given, paths, pd.read_parquet(folder / "names.parquet")


def test_names_hold_for_the_contexts_of_the_file(analysed, named):
    _, _, table = named
    store, data = analysed.contexts(), analysed.tokens()
    assert list(table["feature"]) == list(store.features)
    told = table[table["name"] != ""]
    assert len(told) >= 5
    assert ((told["agreement"] >= 0.8) & (told["range"] >= 0.5 * ~told["strongest"])).all()
    assert not set(told["rule"]) - set(RULES)
    # Names of one token, held against the ids that the store and the corpus have.
    first, last = data.splits["held_out"]
    ids = data.take(np.arange(first, last))
    checked = 0

    def text_of(number: int) -> str:
        return measure.visible(store.vocabulary.one(number))

    for row in told[told["rule"] == "token"].to_dict("records"):
        feature = store.feature(row["feature"])
        members = row["name"].removeprefix("strongest on ").split(" or ")
        strong = measure.strong(feature.top, 5)
        held = [
            context.value
            for context in strong
            if shortened(shown(text_of(ids[context.block - first, context.offset]))) in members
        ]
        assert len(held) >= 0.8 * len(strong)
        assert sum(held) >= 0.8 * sum(context.value for context in strong)
        checked += 1
    assert checked
    assert (told["share"] <= 0.2).all()


def test_shares_are_those_of_the_text(analysed):
    store, data = analysed.contexts(), analysed.tokens()
    text = measure.Text(data, store)
    shares = text.shares(copies=False)
    ids = data.take(np.arange(*data.splits["held_out"]))
    size = ids.size
    assert size < measure.POSITIONS  # all of them are counted
    tokens = Counter(shown(measure.visible(store.vocabulary.one(i))) for i in ids.ravel())
    for token, count in tokens.most_common(20):
        if token:
            assert shares["token", token] == pytest.approx((count + 1) / (size + 1))
    assert shares["start", "at first token"] == pytest.approx((len(ids) + 1) / (size + 1))
    assert shares["token", "never seen"] == 1 / (size + 1)


def test_strong_contexts_are_those_of_half_the_largest_activation():
    def contexts(*values: float) -> list[stored.Context]:
        return [stored.Context(0, 0, 0, v, None, np.zeros(0), [], np.zeros(0)) for v in values]

    many = contexts(10, 9, 8, 7, 6, 5, 4.9, 4)
    assert [c.value for c in measure.strong(many, 5)] == [10, 9, 8, 7, 6, 5]
    assert [c.value for c in measure.strong(contexts(10, 4, 3, 2, 1), 3)] == [10, 4, 3]


def test_few_contexts_name_nothing(analysed, named):
    _, _, table = named
    store = analysed.contexts()
    text = measure.Text(analysed.tokens(), store)
    number = int(table.loc[table["name"] != "", "feature"].iloc[0])
    feature = store.feature(number)
    found = measure.names([feature], text, Names(contexts=len(feature.top) + 1), set())
    assert list(found["name"]) == [""]


def test_the_summary_counts_names(named, tmp_path):
    _, _, table = named

    class Tables:
        def table(self, name):
            alive = np.arange(len(table)) % 2 == 0
            features = pd.DataFrame({"feature": table["feature"], "alive": alive})
            return {"names": table, "features": features}[name]

    found = numbers(Tables())
    living = table[np.arange(len(table)) % 2 == 0]
    assert found["named_features"] == (living["name"] != "").sum()
    assert found["named_features_strongest"] == living["strongest"].sum()
    assert found["named_feature_share"] == pytest.approx((living["name"] != "").mean())


def test_the_stage_reads_the_contexts_and_the_text():
    stage = registry.stages()["names"]
    assert {"contexts", "tokens"} <= set(stage.reads)


# The range chart


def test_the_chart_shows_matched_features_of_every_kind_in_order_of_onset():
    rng = np.random.default_rng(0)
    F = 400
    living = pd.DataFrame(
        {
            "feature": np.arange(F),
            "matched": rng.random(F) < 0.5,
            "name": [f"n{i % 300}" if i % 4 else "" for i in range(F)],
            "strongest": np.arange(F) % 7 == 0,
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
    assert not shown["strongest"].any()
    assert shown["onset_step"].is_monotonic_increasing
    assert {"induction", "previous_token"} == set(shown["kind"])
    onsets = shown.loc[shown["kind"] == "previous_token", "onset_step"]
    assert np.histogram(onsets, 4, (0, 1000))[0].min() >= 3
    # Where nothing is matched, all named features may be shown.
    assert len(figure.choose(living.assign(matched=False), 30)) == 30
    assert len(figure.choose(living.assign(strongest=True), 30)) == 30


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
    names["strongest"] = False
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

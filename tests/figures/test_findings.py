"""Titles that state a finding: other numbers make another sentence, also that nothing is found."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
import pytest

from ontogeny.analyses.circuits import figure_abilities, figure_ablations
from ontogeny.analyses.complexity import figure as complexity
from ontogeny.analyses.contexts import figure as contexts
from ontogeny.analyses.dimensionality import figure as dimensionality
from ontogeny.analyses.frontier import figure as frontier
from ontogeny.analyses.induction import figure as induction
from ontogeny.analyses.kinds import figure as kinds
from ontogeny.analyses.makers import figure as makers
from ontogeny.analyses.names import figure as names
from ontogeny.analyses.passages import figure as passages
from ontogeny.analyses.presence import figure as presence
from ontogeny.analyses.trust import figure as trust
from ontogeny.figures import (
    comparison,
    controls,
    directions,
    divergence,
    fidelity,
    histories,
    lifetimes,
    peaks,
    replicates,
    stability,
    style,
    training,
)

T = pd.DataFrame


def rows(columns: str, *values: tuple) -> T:
    """A table of named columns."""
    return T(list(values), columns=columns.split())


def test_peaks():
    table = T({"step": [0, 8, 16, 32], "matched": [10, 40, 10, 10], "unmatched": [5, 20, 5, 5]})
    assert peaks.finding(table) == (
        "More features peak at step 8 than at any other snapshot: 60 of 105 (57%)"
    )
    table[["matched", "unmatched"]] = 10, 11
    assert "about equally often" in peaks.finding(table)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([10, 20, 70], "more often than unmatched ones (20%)"),
        ([10, 72, 18], "no more or less often than unmatched ones (72%)"),
        ([2, 95, 3], "less often than unmatched ones (95%)"),
    ],
)
def test_lifetimes(other, said):
    classes = ["initialisation", "emergent", "transient"]
    table = T({
        "panel": "lifetime", "group": ["matched"] * 3 + ["unmatched"] * 3, "class": classes * 2,
        "value": [10, 70, 20, *other],
    })  # fmt: skip
    assert lifetimes.finding(table) == f"70% of the 100 matched features emerge and stay, {said}"
    table["value"] = [10, 20, 70, 0, 0, 0]
    assert lifetimes.finding(table) == "70% of the 100 matched features fade before the end"
    assert lifetimes.finding(table.assign(value=0)) == ""
    of_one_seed = table[table["group"] == "matched"].assign(group="living")
    assert " living features " in lifetimes.finding(of_one_seed)


def test_histories():
    table = rows(
        "feature peak_snapshot_index snapshot_index step normalised_strength",
        *[(1, 1, i, s, v) for i, s, v in ((1, 0, 1.0), (2, 8, 0.6), (3, 16, 0.2))],
        *[(2, 2, i, s, v) for i, s, v in ((1, 0, 0.1), (2, 8, 1.0), (3, 16, 0.9))],
        *[(3, 3, i, s, v) for i, s, v in ((1, 0, 0.1), (2, 8, 0.2), (3, 16, 1.0))],
    )
    assert histories.finding(table) == (
        "Half of the 3 features have peaked by step 8; 33% end below half of their peak strength"
    )


@pytest.mark.parametrize(
    ("first", "said"), [(0.05, "are new"), (0.5, "have turned in part"), (0.8, "are still those")]
)
def test_directions(first, said):
    cosines = {0: first, 8: 0.75, 16: 1.0}
    table = rows(
        "group step other_step cosine",
        *[("all", 16, other, value) for other, value in cosines.items()],
        *[("all", other, 16, value) for other, value in cosines.items()],
    )
    found = directions.finding(table)
    assert said in found
    assert f"from step {0 if first > 0.7 else 8} on they are within a cosine of 0.7" in found


def test_stability():
    table = T({
        "cosine": [0.9, 0.8, 0.2, 0.1], "matched": [True, True, False, False],
        "token_matched_cosine": [0.1, 0.1, 0.1, 0.1], "row_matched_cosine": [0.85, 0.1, 0.1, 0.1],
    })  # fmt: skip
    assert stability.finding(table) == (
        "50% of the features are found again in another seed, "
        "hardly more than 0% of token means and 25% of random rows"
    )
    table["row_matched_cosine"] = 0.85
    assert "another seed, no more than 0%" in stability.finding(table)
    table["row_matched_cosine"] = 0.1
    assert "another seed, against 0% of token means" in stability.finding(table)
    assert "With one seed nothing" in stability.finding(table.iloc[:0])


def test_training_and_divergence():
    loss = [("loss", "held_out_loss", step, x) for step, x in ((0, 7.0), (100, 3.0))]
    columns = "panel series step value"
    table = rows(columns, *loss, ("crossing", "unigram", 36.0, 5.9))
    assert training.finding(table) == (
        "The held-out loss falls from 7.00 to 3.00 nats, below the unigram level at step 36"
    )
    for gain, said in ((-0.1, "gains nothing"), (0.5, "gains 0.50 nats")):
        more = rows(columns, ("gain", "copying_gain", 100, gain))
        assert said in training.finding(pd.concat([table, more]))
    assert "does not fall" in training.finding(rows(columns, *loss[::-1]).assign(step=[0, 1]))
    kl = [("kl_bigram", step, x) for step, x in ((0, 3.0), (8, 0.5), (16, 1.0))]
    table = rows("series step value", *kl)
    said = "The model is closest to the bigram model at step 8 (0.50 nats)"
    assert divergence.finding(table) == said
    assert "and still approaching it" in divergence.finding(table.assign(value=[3, 2, 1.0]))


def test_fidelity():
    table = rows(
        "measure series step value",
        *[("explained_variance", "crosscoder, seed 0", step, 0.9) for step in (0, 8)],
        *[("explained_variance", "PCA, as many coefficients", step, 0.8) for step in (0, 8)],
    )
    assert fidelity.finding(table) == (
        "The crosscoder explains 90% of the variance, more than the same number of principal "
        "components (80%), and does better at 2 of 2 snapshots"
    )
    table["value"] = [0.7, 0.9, 0.8, 0.95]
    assert "no more than the same number of principal components" in fidelity.finding(table)


def test_comparison_controls_and_replicates():
    table = T({"group": ["shared", "shared", "only_last", "between"], "cosine": [0.9, 0.2, 0, 0]})
    assert comparison.finding(table) == (
        "2 of 4 features are present at both snapshots (50%); "
        "the directions agree (cosine of at least 0.7) in 50% of these"
    )
    means = rows(
        "outcome condition seed value low high",
        ("turn", controls.BASELINE, np.nan, 300, 250, 350),
        ("turn", "warmup", np.nan, 500, 450, 550),
    )
    assert "1 of 1 outcomes differ" in controls.finding(means)
    assert controls.finding(means).endswith("recipe's: warmup")
    means.loc[1, "low"] = 340
    assert "No change of the recipe can be distinguished" in controls.finding(means)
    loss = rows("panel model step value", ("loss", "a", 9, 2.0), ("loss", "b", 9, 2.5))
    assert replicates.finding(loss) == "2 models end at held-out losses from 2.00 to 2.50 nats"


def test_dimensionality():
    table = rows(
        "panel group seed step value",
        *[("share", "all", seed, step, x) for seed, step, x in
          ((0, 0, 0.3), (1, 0, 0.4), (0, 9, 0.7), (1, 9, 0.8))],
    )  # fmt: skip
    assert dimensionality.finding(table) == (
        "Features occupy more dimensions as training goes on: 0.35 d at the start, "
        "0.75 d at the end"
    )
    assert " fewer " in dimensionality.finding(table.assign(value=[0.8, 0.7, 0.4, 0.3]))
    assert "neither more nor fewer" in dimensionality.finding(
        table.assign(value=[0.3, 0.7, 0.4, 0.8])
    )


def test_kinds():
    def onsets(**of_kinds):
        return pd.concat([
            T({"step": [0, *steps, 999]}).assign(panel="onset", group="matched", kind=kind)
            for kind, steps in of_kinds.items()
        ])  # fmt: skip

    early, late = list(range(10, 40)), list(range(500, 530))
    found = kinds.finding(onsets(context=early, current_token=early, induction=late))
    assert found.startswith(
        "Context and current-token features appear first, induction features last (median"
    )
    assert "cannot be distinguished" in kinds.finding(onsets(context=early, induction=early))
    assert "Fewer than two kinds" in kinds.finding(onsets(context=early, induction=[1]))


@pytest.mark.parametrize(
    ("low", "value", "high", "said"),
    [
        (0.02, 0.1, 0.2, "rises with the peak (ρ = 0.10 [0.02, 0.20])"),
        (-0.3, -0.2, -0.1, "falls with the peak (ρ = −0.20 [−0.30, −0.10])"),
        (-0.1, 0.1, 0.3, "shows no clear change with the peak"),
    ],
)
def test_complexity(low, value, high, said):
    table = rows(
        "panel score against class which coefficient low value high",
        ("correlation", "span_replaced", "peak_snapshot_index", "all", "all", "spearman_partial",
         low, value, high),
    )  # fmt: skip
    assert said in complexity.finding(table)
    assert complexity.finding(table).startswith("Given density, the span measured by repl")
    assert "Too few features" in complexity.finding(table.iloc[:0])


def test_circuits():
    table = rows(
        "task panel series value",
        ("copy", "attribution", "3", 2.0),
        ("copy", "attribution", "other features", 2.0),
        ("copy", "attribution", "error", 3.0),
        ("agree", "task", "accuracy", 0.5),
    )
    assert figure_abilities.finding(table).startswith(
        "The model can do 1 of 2 tasks; in 1 of them the features account for more"
    )
    table.loc[2, "value"] = 5
    assert "in 0 of them" in figure_abilities.finding(table)
    assert "none of 1 tasks better than chance" in figure_abilities.finding(table.iloc[3:])

    def curve(restored, low, random_high):
        columns = "task step side group error k restored restored_low restored_high"
        one = ("copy", 9, "sufficiency")
        return rows(columns, (*one, "absolute", False, 10, restored, low, 1.0),
                    (*one, "random", False, 10, 0.1, 0.0, random_high),
                    (*one, "absolute", False, 100, 1.0, 1.0, 1.0))  # fmt: skip

    assert figure_ablations.finding(curve(0.6, 0.5, 0.2)) == (
        "At the last snapshot the 10 most important features restore half of the answer in 1 of 1 "
        "tasks, and more than 10 random features do in 1"
    )
    found = figure_ablations.finding(curve(0.3, 0.1, 0.2))
    assert "in 0 of 1 tasks" in found
    assert found.endswith("in none more than random features do")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(900, 1000, "before the induction head"), (1300, 1400, "after the"), (900, 1300, "cannot be")],
)
def test_induction(low, high, said):
    table = rows(
        "panel event detail group value low high",
        ("onset", "features", "induction", "all", 1000, low, high),
        ("onset", "induction_head_text", "1.1", "", 1150, 1100, 1200),
    )
    assert said in induction.finding(table)
    assert induction.finding(table.iloc[:1]) == "No induction head with a known onset"
    assert induction.finding(table.iloc[:0]) == (
        "No induction features and no induction head with a known onset"
    )


def test_makers():
    table = rows(
        "panel kind layer head low value high",
        ("loss", "induction", 0, 0, 0.75, 0.8, 0.85),
        ("loss", "induction", 1, 1, 0.6, 0.65, 0.7),
    )
    assert (
        makers.finding(table) == "Induction features lose 80% of their activation without head 0.0"
    )
    table.loc[1, "high"] = 0.76
    assert makers.finding(table).endswith("(about as much as without head 1.1)")
    assert makers.finding(table.iloc[:0]) == ""


def test_presence_and_trust():
    table = rows(
        "crosscoder panel measure test group low value high",
        ("one", "verdict", "contradicted", "free", "all", 0.05, 0.09, 0.15),
        ("two", "verdict", "contradicted", "free", "all", 0.19, 0.27, 0.36),
    )
    assert presence.finding(table) == (
        "Where the norm calls a feature absent, scaling finds it in "
        "9% [5%, 15%] of cases in one and 27% [19%, 36%] of cases in two"
    )
    table.loc[0, "high"] = 0.2
    assert presence.finding(table).endswith("cannot be distinguished")
    assert "No feature is absent" in presence.finding(table.iloc[:0])
    table = rows(
        "crosscoder panel group x low value high",
        ("one", "share", "frequent", "silent_births", 0.003, 0.014, 0.077),
        ("two", "share", "frequent", "silent_births", 0.1, 0.2, 0.3),
    )
    assert trust.finding(table) == (
        "Among frequent features of one, 1.4% [0.3%, 7.7%] of births are silent"
    )
    assert "No feature is frequent enough" in trust.finding(table.assign(group="all"))


def test_passages():
    table = rows(
        "passage position step loss",
        *[(0, place, step, loss)
          for place, losses in ((1, (7, 4, 2)), (2, (7, 3, 1)), (3, (7, 8, 8)))
          for step, loss in zip((0, 10, 100), losses, strict=True)],
    )  # fmt: skip
    assert passages.finding(table) == (
        "One passage: the median token's loss falls from 7.0 to 2.0 nats, half of it by step 10; "
        "33% of the tokens are less expected at the end than at the start"
    )
    turned = table.assign(step=100 - table["step"])
    assert passages.finding(turned).endswith("loss does not fall: 2.0 to 7.0 nats")
    assert "No passage" in passages.finding(table.assign(loss=float("nan")))


def test_names_contexts_and_frontier():
    table = rows(
        "panel feature kind onset_step",
        *[("feature", i, kind, onset) for i, kind, onset in
          ((1, "context", 0), (2, "context", 5), (3, "induction", 90), (4, "induction", 99))],
    )  # fmt: skip
    said = "Median onset of the 4 features shown, by kind: "
    assert names.finding(table) == said + "context 2, induction 94"
    turned = table.assign(onset_step=table["onset_step"].to_numpy()[::-1])
    assert names.finding(turned) == said + "induction 2, context 94"
    assert "of a kind that could be established" in names.finding(table.assign(kind="none"))
    said = "2 features with different histories and their contexts"
    table = rows(
        "panel feature matched matched_cosine",
        ("history", 1, True, 0.9), ("history", 2, False, 0.1),
    )  # fmt: skip
    assert contexts.finding(table) == f"{said}, 1 found again in another seed"
    of_one_seed = table.assign(matched=False, matched_cosine=np.nan)
    assert contexts.finding(of_one_seed) == said
    table = rows("measure value", ("explained_variance", 0.8), ("loss_recovered", 0.95))
    assert frontier.finding(table).endswith("explains 80% of the variance")


def test_a_title_is_made_from_the_csv_and_makes_room(tmp_path):
    table = T({"value": [1 / 3, 2 / 3]})
    asked: list[T] = []

    def finding(given: T) -> str:
        asked.append(given)
        return "A sentence " * 20

    with style.paper():
        figure = style.new_figure(100, 40)
        figure.subplots()
        figure.suptitle("a note")
        style.save(figure, table, tmp_path / "one", finding)
    pd.testing.assert_frame_equal(asked[0], pd.read_csv(tmp_path / "one.csv"))
    *lines, note = figure.get_suptitle().split("\n")
    assert (note, " ".join(lines)) == ("a note", ("A sentence " * 20).strip())
    assert figure.get_figheight() == pytest.approx(40 / 25.4 + len(lines) * style.LINE)
    lengths = [len(line) for line in lines]
    assert len(lines) == len(textwrap.wrap(" ".join(lines), int(style.LETTERS * 100 / 25.4)))
    assert max(lengths) - min(lengths) <= len("sentence ")  # no word alone on the last line


def test_a_number_stays_with_its_interval():
    said = "the span falls with the onset (ρ = −0.16 [−0.22, −0.09]) of 12% [9%, 15%] of them"
    for letters in range(30, 80):
        lines = style.balanced(said, letters).split("\n")
        assert " ".join(lines) == said
        assert max(map(len, lines)) <= letters
        for whole in ("(ρ = −0.16 [−0.22, −0.09])", "12% [9%, 15%]"):
            assert any(whole in line for line in lines)


def test_colours_of_kinds_and_classes_mean_nothing_else():
    own = [*style.KIND_COLOURS.values(), *style.CLASS_COLOURS.values()]
    assert len(set(own)) == len(own)
    others = {name: colour for name, colour in style.COLOURS.items()
              if name not in {**style.KIND_COLOURS, **style.CLASS_COLOURS}}  # fmt: skip
    assert set(own).isdisjoint(others.values())
    assert set(own).isdisjoint(style.CASES)
    assert set(style.MARKERS) == set(style.KIND_COLOURS)

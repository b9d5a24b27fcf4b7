"""Figures of circuits: what is not done is not drawn, and what is drawn is in the table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ontogeny.analyses.circuits import figure_abilities as abilities
from ontogeny.analyses.circuits import figure_ablations as ablations
from ontogeny.figures import style
from ontogeny.files import InputError

FIGURE_STEPS = [0, 1, 8, 100]


def figure_tables(folder, matching: bool = True, able: bool = True):
    """Tables of three tasks: one done, one not, one worse than chance; each figure's arguments."""
    folder.mkdir(exist_ok=True)
    n = 30
    cosine = np.where(np.arange(n) % 3 > 0, 0.9, 0.4)
    matched = (cosine >= 0.7) & matching
    table = pd.DataFrame({"feature": np.arange(n), "alive": True, "matched": matched})
    table["matched_cosine"] = cosine if matching else np.nan
    table.to_parquet(folder / "features.parquet")
    count = len(FIGURE_STEPS)
    strengths = pd.DataFrame({"feature": np.repeat(np.arange(n), count)})
    strengths["snapshot_index"] = np.tile(np.arange(1, count + 1), n)
    strengths["step"] = np.tile(FIGURE_STEPS, n)
    strengths["normalised_strength"] = (strengths["feature"] + 1) / n
    strengths.to_parquet(folder / "strengths.parquet")
    behaviour, attributed, curves = [], [], []
    for task, last in (("agreement_simple", 0.9), ("induction", 0.5), ("indirect_object", 0.2)):
        for i, step in enumerate(FIGURE_STEPS):
            accuracy = 0.5 + (last - 0.5) * i / (count - 1)
            row = {"task": task, "snapshot_index": i + 1, "step": step, "accuracy": accuracy}
            row |= {"accuracy_low": accuracy - 0.05, "accuracy_high": accuracy + 0.05}
            row["logit_difference"] = i * (last - 0.5)
            row["logit_difference_low"] = row["logit_difference"] - 0.1
            row["logit_difference_high"] = row["logit_difference"] + 0.1
            row["done"] = able and accuracy - 0.05 > 0.5
            behaviour.append(row)
            for feature in [*range(12), -1]:
                value = (-1) ** feature * (feature + 2) / 10
                attributed.append(
                    {"task": task, "feature": feature, "step": step, "attribution": value,
                     "standard_error": 0.02, "told": 3 <= feature < 11}
                )  # fmt: skip
            for side, sign in (("sufficiency", 1), ("necessity", -1)):
                for group in ("absolute", "signed", "random", "matched"):
                    for k, error in [(0, False), (3, False), (12, False), (12, True)]:
                        share = 0.5 - sign * 0.5 + sign * min(1, k / 10)
                        one = {"task": task, "snapshot_index": i + 1, "step": step, "side": side}
                        one |= {"group": group, "k": k, "error": error}
                        if row["done"]:
                            one |= {"restored": share, "restored_low": share - 0.1}
                            one["restored_high"] = share + 0.1
                        curves.append(one)
    pd.DataFrame(behaviour).to_csv(folder / "behaviour.csv", index=False)
    pd.DataFrame(attributed).to_parquet(folder / "attribution.parquet")
    columns = ["restored", "restored_low", "restored_high"]
    every = pd.DataFrame(curves)
    every.reindex(columns=list(dict.fromkeys([*every.columns, *columns]))).to_csv(
        folder / "curves.csv", index=False
    )
    names = ("features.parquet", "strengths.parquet", "behaviour.csv", "attribution.parquet")
    f, s, b, a = (folder / name for name in names)
    named = folder / "names.parquet"
    names = {"feature": [8, 10], "name": ["", "after $[$"], "strongest": False}
    pd.DataFrame(names).to_parquet(named)
    return {abilities: (f, s, b, a, named), ablations: (f, b, a, folder / "curves.csv")}


def texts_of(figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


@pytest.fixture
def rendered(monkeypatch, tmp_path):
    """A function that draws a figure coarsely and returns its words and its table."""
    found = []

    def render(figure, table, _, finding):
        finding(table)
        figure.set_layout_engine("none")  # which takes the longest
        figure.savefig(tmp_path / "x.png", dpi=30)
        found.append((texts_of(figure), table))

    monkeypatch.setattr(style, "save", render)

    def draw(figure, arguments):
        figure.draw(*arguments, tmp_path / "x")
        return found[-1]

    return draw


@pytest.mark.parametrize("figure", [abilities, ablations])
def test_figures_write_three_files_the_same_each_time(figure, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "PNG_DPI", 40)
    arguments = figure_tables(tmp_path / "tables")[figure]
    for name in "ab":
        figure.draw(*arguments, tmp_path / name)
    for ending in ("pdf", "png", "csv"):
        first = (tmp_path / f"a.{ending}").read_bytes()
        assert first == (tmp_path / f"b.{ending}").read_bytes()
        assert len(first) > 1000
    assert not list(tmp_path.glob(".*.part"))


def test_abilities_draws_no_features_of_what_is_not_done(tmp_path, rendered):
    words_, table = rendered(abilities, figure_tables(tmp_path / "t")[abilities])
    assert "no different from chance" in words_
    assert "worse than chance" in words_
    strength = table[table["panel"] == "strength"]
    # The largest of those told from 0, and not 11, which is larger.
    assert list(strength["series"].unique()) == ["10", "9", "8", "7", "6"]
    assert set(strength["task"]) == {"agreement_simple"}
    assert strength.loc[strength["series"] == "10", "value"].tolist() == [11 / 30] * 4
    assert strength.drop_duplicates("series")["matched"].tolist() == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert "3 of 5 key features matched" in words_
    assert "10: after $[$" in words_
    bars = table[table["panel"] == "attribution"].set_index("series")
    assert set(bars["task"]) == {"agreement_simple"}
    assert bars.loc["10", "value"] == pytest.approx(1.2)
    assert bars.loc["10", "high"] == pytest.approx(1.2 + 1.96 * 0.02)
    rest = sum((-1) ** i * (i + 2) / 10 for i in [0, 1, 2, 3, 4, 5, 11])
    assert bars.loc["other features", "value"] == pytest.approx(rest)
    assert bars.loc["error", "value"] == pytest.approx(-0.1)
    accuracy = table[(table["series"] == "accuracy") & (table["task"] == "indirect_object")]
    assert accuracy["value"].tolist() == pytest.approx([0.5, 0.4, 0.3, 0.2])
    assert not accuracy["done"].any()


def test_ablations_draws_only_what_is_done(tmp_path, rendered):
    words_, table = rendered(ablations, figure_tables(tmp_path / "t")[ablations])
    assert "No better than chance at any of these snapshots: induction" in words_
    assert "top 10: 7 matched" in words_
    drawn = table[table["side"].notna()]
    assert set(drawn["task"]) == {"agreement_simple"}
    assert set(drawn["group"]) == {"absolute", "random", "matched"}
    assert drawn["step"].unique().tolist() == [1, 8, 100]
    some = drawn[(drawn["side"] == "sufficiency") & (drawn["group"] == "absolute")]
    assert some.loc[some["step"] == 100, "restored"].tolist() == pytest.approx([0, 0.3, 1, 1])
    rest = table[table["side"].isna()]
    assert len(rest) == 9
    assert not rest["done"].any()


@pytest.mark.parametrize("figure", [abilities, ablations])
def test_figures_of_poor_tables(figure, tmp_path, rendered):
    words_, table = rendered(figure, figure_tables(tmp_path / "t", matching=False)[figure])
    assert "one seed" in words_
    assert (table.get("top_matched", pd.Series([0])).fillna(0) == 0).all()
    words_, table = rendered(figure, figure_tables(tmp_path / "t", able=False)[figure])
    assert not table["done"].any()
    assert {"strength", "attribution"}.isdisjoint(table.get("panel", []))


@pytest.mark.parametrize(
    ("figure", "file", "column"),
    [(abilities, "behaviour.csv", "accuracy_low"), (ablations, "curves.csv", "restored")],
)
def test_figures_name_a_missing_column(figure, file, column, tmp_path):
    arguments = figure_tables(tmp_path)[figure]
    pd.read_csv(tmp_path / file).drop(columns=column).to_csv(tmp_path / file, index=False)
    with pytest.raises(InputError, match=rf"{file}: no column {column};"):
        figure.draw(*arguments, tmp_path / "x")

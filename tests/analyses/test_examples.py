"""The figure of examples: which features, what text, and tokens of every sort."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_figures import STEPS, features, write_tables

from ontogeny.analyses.contexts import figure as examples
from ontogeny.figures import style
from ontogeny.files import InputError

TOKENS = [
    "The",
    " cat",
    " $x_{1}$",
    "<script>",
    r"\x00",
    "↵",
    "中",
    "é",
    "",
    " sat",
    "🦜",
    "\u0301",
]


def arguments(folder, matching: str = "some", kinds: bool = True):
    """The tables of a small run; four contexts of each feature, but two of feature 9."""
    write_tables(folder, matching)
    strengths = pd.read_parquet(folder / "strengths.parquet")
    strengths["strength"] = strengths["normalised_strength"] * (1 + strengths["feature"])
    strengths.to_parquet(folder / "strengths.parquet")
    rows = []
    for feature in range(11):
        for rank in range(1, 3 if feature == 9 else 5):
            position = 3 * rank - 1
            values = np.zeros(len(TOKENS), np.float32)
            values[position], values[0] = 8 / rank, np.nan
            rows.append(
                {
                    "feature": feature,
                    "rank": rank,
                    "block": 7,
                    "offset": 100 + position,
                    "activation": 8 / rank,
                    "tokens": TOKENS,
                    "activations": values,
                    "position": position,
                    "promoted": [" a", "b$", "中"],
                }
            )
    pd.DataFrame(rows).to_parquet(folder / "contexts.parquet")
    named = pd.DataFrame({"feature": [3, 4, 10], "name": ["", "after (", "$x_{2}$ 50%"]})
    named["strongest"] = False
    named.to_parquet(folder / "names.parquet")
    names = ("features", "strengths", "contexts", "kinds", "names")
    paths = [folder / f"{name}.parquet" for name in names]
    return paths if kinds else [*paths[:3], None, None]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "PNG_DPI", 40)
        paths = arguments(folder)
        examples.draw(*paths, folder / "examples")
        examples.draw(*paths, folder / "again")
    return folder


def test_three_files_the_same_again(drawn):
    for ending, start in (("pdf", b"%PDF"), ("png", b"\x89PNG"), ("csv", b"panel,class,feature")):
        made = (drawn / f"examples.{ending}").read_bytes()
        assert made.startswith(start)
        assert made == (drawn / f"again.{ending}").read_bytes()


def test_the_examples_follow_the_rule(drawn):
    """9 lacks contexts, 0 is too rare; a matched one before others; kinds not drawn before."""
    table = pd.read_csv(drawn / "examples.csv")
    chosen = table.drop_duplicates("feature").set_index("class")["feature"].to_dict()
    living = features("some").set_index("feature")
    assert living[living["matched"]].index.tolist() == [7, 8, 9, 10]
    assert chosen == {
        "initialisation, kept": 2,
        "initialisation, lost": 1,
        "emergent, lost": 4,  # has a name; 5 is better matched, both of a kind not drawn before
        "emergent early": 6,  # 3 is of a kind drawn before
        "emergent midway": 8,  # better matched than 7, whose kind is drawn before
        "emergent late": 10,
    }
    kinds = table.drop_duplicates("feature").set_index("feature")["kind"]
    assert kinds[2] == "current_token"
    names = table.drop_duplicates("feature").set_index("feature")["name"].dropna()
    assert names.to_dict() == {4: "after (", 10: "$x_{2}$ 50%"}


def test_the_csv_holds_what_is_drawn(drawn):
    table = pd.read_csv(drawn / "examples.csv", keep_default_na=False, na_values=["nan"])
    one = table[table["feature"] == 10]
    history = one[one["panel"] == "history"]
    assert [int(step) for step in history["step"]] == STEPS
    peak = features("some").set_index("feature").loc[10, "peak_snapshot_index"]
    assert [float(v) for v in history["value"]] == pytest.approx(
        [11 * 0.6 ** abs(k - peak) for k in range(1, 7)]
    )
    text = one[one["panel"] == "context"]
    assert set(text["rank"].astype(int)) == {1, 2, 3}
    first = text[text["rank"].astype(int) == 1]
    assert first["token"].tolist() == TOKENS
    assert first["offset"].astype(int).tolist() == list(range(100, 100 + len(TOKENS)))
    own = text[text["own"].astype(str) == "True"]
    assert own["offset"].astype(int).tolist() == [102, 105, 108]
    assert own["shade"].astype(float).tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    promoted = one[one["panel"] == "promoted"]
    assert promoted["token"].tolist() == [" a", "b$", "中"]


@pytest.mark.parametrize(
    ("matching", "kinds", "said"),
    [
        ("some", True, "36%"),
        ("none", False, "0%"),
        ("one seed", True, "one seed: it is not known which of them are stable"),
    ],
)
def test_the_figure_names_the_matched_share(tmp_path, monkeypatch, matching, kinds, said):
    texts = []

    def look(figure, table, _, finding):
        finding(table)
        texts.extend(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))
        texts.append(figure.get_suptitle())
        texts.append(set(table["kind"]))

    monkeypatch.setattr(style, "save", look)
    examples.draw(*arguments(tmp_path, matching, kinds), tmp_path / "x")
    assert any(said in text for text in texts[:-1])
    heads = [t for t in texts[:-1] if "onset at step" in t]
    assert len(heads) == 6
    named = "feature 10: $x_{2}$ 50% · emergent late"
    assert sum(head.startswith(named) for head in heads) == int(kinds)
    if matching == "none":
        assert all("not matched" in head for head in heads)
        assert texts[-1] == {""}
    if matching == "one seed":
        assert not any("matched" in head for head in heads)
    assert "<script>" in texts
    assert " $x_{1}$" in texts


def test_no_feature_to_show(tmp_path, monkeypatch):
    tables, texts = [], []

    def look(figure, table, _, finding):
        finding(table)
        tables.append(table)
        texts.extend(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))

    monkeypatch.setattr(style, "save", look)
    paths = arguments(tmp_path)
    pd.read_parquet(paths[0]).assign(density=0.5).to_parquet(paths[0])
    examples.draw(*paths, tmp_path / "x")
    assert "no feature is active often enough to be shown" in texts
    assert tables[0].empty
    assert "shade" in tables[0]


def test_missing_column(tmp_path):
    paths = arguments(tmp_path)
    pd.read_parquet(paths[2]).drop(columns="promoted").to_parquet(paths[2])
    with pytest.raises(InputError, match=r"contexts\.parquet: no column promoted;"):
        examples.draw(*paths, tmp_path / "x")


def test_a_line_holds_the_position_and_as_much_around_it_as_fits():
    rng = np.random.default_rng(0)
    for _ in range(300):
        widths = rng.integers(0, 9, 30)
        tokens = ["x" * w for w in widths]
        position, cells = int(rng.integers(30)), int(rng.integers(1, 80))
        shown = examples.line(tokens, position, cells)
        assert position in shown
        used = widths[list(shown)].sum()
        if len(shown) > 1:
            assert used <= cells
        for more in (shown[0] - 1, shown[-1] + 1):
            if 0 <= more < 30:
                assert used + widths[more] > cells


def test_letters_without_a_font_are_codes():
    assert examples.drawable("aé↵⇥␣\\x00") == "aé↵⇥␣\\x00"
    assert examples.drawable("\U000e0041") == r"\u{e0041}"
    assert examples._cells("a中\u0301") == 3

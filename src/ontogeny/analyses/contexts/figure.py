"""Examples of features: each one's history, and the texts in which it is active."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ontogeny.figures import style
from ontogeny.figures.glyphs import drawable, fonts

CONTEXTS = 3  # number of contexts drawn for each feature
PROMOTED = 8
LEAST_DENSITY, MOST_DENSITY = 1e-4, 0.1
COLUMNS = ["density", "peak_step", "onset_step", "initialisation", "emergent", "transient"]
OF_CONTEXTS = ["feature", "rank", "block", "offset", "activation", "tokens", "activations"]
OF_CONTEXTS += ["position", "promoted"]
LABELS = ["class", "feature", "name", "kind", "matched", "matched_cosine"]  # of everything drawn
WIDTH, ROW, TOP, BOTTOM = 180.0, 29.0, 12.0, 16.0  # mm
TEXT_LEFT, TEXT_RIGHT = 80.0, 178.0  # mm from the left edge of the page
SIZE = 6.3  # size of the contexts' letters in points
ADVANCE = 0.602  # width of a letter of DejaVu Sans Mono over its size
CELLS = int((TEXT_RIGHT - TEXT_LEFT) / 25.4 * 72 / (SIZE * ADVANCE))  # letters in a line
BEFORE = 0.62  # largest share of a line up to and including the position's token
SHADE = "#FFD23C"  # used if the kind is unknown


def draw(
    features: Path,
    strengths: Path,
    contexts: Path,
    kinds: Path | None,
    named: Path | None,
    output: Path,
) -> None:
    """Decoder norms of one feature of each class, with its top contexts and promoted tokens.

    The classes are initialisation features that are kept, and that are not; emergent features that
    are not kept; and the thirds by onset of emergent ones that are kept. Candidates are active on
    at least one token in 10,000 and at most one in ten, have as many contexts as are drawn, and
    are matched if any are. In each class, preference goes to a feature of a kind not drawn before
    (if kinds are known), then to one with a name, then to the best matched, then to the most
    frequent.

    Parameters
    ----------
    features, strengths, contexts, kinds, named : tables; the last two are None if unknown.
    output : path without ending. Its CSV has panel ('history', 'context', 'promoted'), class,
        feature, name, kind, matched, matched_cosine; for a history snapshot_index, step, value (the
        decoder norm); for a context rank, block, offset (of the token), token, value (the
        activation), shade (relative to the feature's largest), own (whether the token is at the
        context's position); for a promoted token rank and token.
    """
    living = style.read_living(features, COLUMNS)
    curves = style.read(strengths, ["feature", "snapshot_index", "step", "strength"])
    texts = style.read(contexts, OF_CONTEXTS)
    if kinds is None:
        living["kind"] = ""
    else:
        known = style.read(kinds, ["feature", "kind"])[["feature", "kind"]]
        living = living.merge(known, on="feature", how="left").fillna({"kind": "none"})
    names = style.names_of(named)
    living["name"] = [names.get(feature, "") for feature in living["feature"]]
    chosen = choose(living, texts)
    last = float(curves["step"].max())
    drawn: list[pd.DataFrame] = []
    with style.paper():
        figure = style.new_figure(WIDTH, TOP + ROW * max(1, len(chosen)) + BOTTOM)
        figure.set_layout_engine("none")  # texts are placed by their width in letters
        height = figure.get_figheight() * 25.4
        figure.suptitle(style.matched_note(living))
        for row, example in enumerate(chosen.to_dict("records")):
            base = height - TOP - ROW * (row + 1)
            lowest = row == len(chosen) - 1
            curve = curves[curves["feature"] == example["feature"]].sort_values("step")
            for kind, left in zip(style.KINDS, (13.0, 47.0), strict=True):
                axis = _axes(figure, left, base + 4, 29, ROW - 9.5)
                mark = "o-" if example["matched"] else "o--"
                axis.plot(
                    curve["step"], curve["strength"], mark, color=_colour(example), markersize=1.6
                )
                axis.set_ylim(0, 1.08 * float(curve["strength"].max()))
                style.step_axis(axis, last, kind, labels=lowest)
                if kind == "log":
                    axis.set_ylabel("decoder norm")
                else:
                    axis.tick_params(axis="y", labelleft=False)
            look: dict[str, Any] = {"va": "bottom", "fontsize": 7.2}
            top = (base + ROW - 4.2) / height
            figure.text(2 / WIDTH, top, "abcdef"[row], fontweight="bold", **look)
            figure.text(5 / WIDTH, top, _heading(example), parse_math=False, **look)
            axis = _axes(figure, TEXT_LEFT, base + 1, TEXT_RIGHT - TEXT_LEFT, ROW - 6.5)
            own = texts[texts["feature"] == example["feature"]].sort_values("rank").head(CONTEXTS)
            history = curve[["snapshot_index", "step"]]
            history = history.assign(value=curve["strength"], panel="history")
            label = {name: example[name] for name in LABELS}
            for table in (history, _contexts(axis, own), _promoted(axis, own)):
                drawn.append(table.assign(**label))
        if chosen.empty:
            axis = _axes(figure, 10, BOTTOM, WIDTH - 20, ROW)
            style.empty(axis, "no feature is active often enough to be shown")
        figure.text(
            TEXT_LEFT / WIDTH,
            2 / height,
            "Shaded: activation over the feature's largest; framed: the position itself.\n"
            "Promoted: by the logit lens, where the decoder norm peaks.\n"
            "Matched: cosine with the feature's partner in other seeds, over all snapshots.",
            fontsize=6.3,
            color="0.3",
        )
        whole = ["snapshot_index", "step", "rank", "block", "offset"]
        columns = ["panel", *LABELS, *whole, "token", "value", "shade", "own"]
        table = pd.concat(drawn, ignore_index=True) if drawn else pd.DataFrame()
        table = table.reindex(columns=columns).astype(dict.fromkeys(whole, "Int64"))
        style.save(figure, table, output, finding)


def finding(table: pd.DataFrame) -> str:
    """Which features are shown."""
    own = table[table["panel"] == "history"].drop_duplicates("feature")
    if own.empty:
        return ""
    said = f"{len(own)} features with different histories and their contexts"
    if own["matched_cosine"].isna().all():  # of one seed
        return said
    return f"{said}, {int(own['matched'].astype(bool).sum())} found again in another seed"


def choose(living: pd.DataFrame, texts: pd.DataFrame) -> pd.DataFrame:
    """The examples, in order, chosen as `draw` describes; with their class."""
    contexts = living["feature"].map(texts["feature"].value_counts()).fillna(0)
    frequent = living["density"].between(LEAST_DENSITY, MOST_DENSITY)
    candidates = living[(contexts >= CONTEXTS) & frequent]
    initial, lost = candidates["initialisation"], candidates["transient"]
    kept = candidates[candidates["emergent"] & ~lost]
    third = (kept["onset_step"].rank(method="first").to_numpy() - 1) * 3 // max(1, len(kept))
    classes = {
        "initialisation, kept": candidates[initial & ~lost],
        "initialisation, lost": candidates[initial & lost],
        "emergent, lost": candidates[candidates["emergent"] & lost],
        "emergent early": kept[third == 0],
        "emergent midway": kept[third == 1],
        "emergent late": kept[third == 2],
    }
    chosen: list[pd.DataFrame] = []
    seen = {"", "none"}
    for name, members in classes.items():
        pool = members[members["matched"]] if members["matched"].any() else members
        if pool.empty:
            continue
        ranked = pool.assign(seen=pool["kind"].isin(seen), unnamed=pool["name"] == "").sort_values(
            ["seen", "unnamed", "matched_cosine", "density", "feature"],
            ascending=[True, True, False, False, True],
            na_position="last",
        )
        seen.add(str(ranked["kind"].iloc[0]))
        chosen.append(ranked.head(1).assign(**{"class": name}))
    return pd.concat(chosen) if chosen else living.iloc[:0].assign(**{"class": ""})


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a position on the page, in mm."""
    w, h = figure.get_size_inches() * 25.4
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def _heading(example: dict[Hashable, Any]) -> str:
    words = [f"feature {example['feature']}", str(example["class"])]
    if example["name"]:
        words[0] += f": {drawable(str(example['name']))}"
    if example["kind"] not in ("", "none"):
        words.append(str(example["kind"]).replace("_", " "))
    words.append(f"onset at step {example['onset_step']:.0f}, peak at {example['peak_step']:.0f}")
    words.append(f"active on {example['density']:.2%} of tokens")
    if example["matched"]:
        words.append(f"matched {example['matched_cosine']:.2f}")
    elif pd.notna(example["matched_cosine"]):
        words.append("not matched")
    return " · ".join(words)


def _colour(example: dict[Hashable, Any]) -> str:
    name = "transient" if example["transient"] else "emergent"
    return style.COLOURS["initialisation" if example["initialisation"] else name]


def _cells(text: str) -> int:
    """The width of a text in letters of a fixed-width font."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def line(tokens: list[str], position: int, cells: int) -> range:
    """The tokens around a position that fit into a line, more of them before it than after.

    A single token always fits.
    """
    widths = [_cells(token) for token in tokens]
    first, used = position, widths[position]
    while first and used + widths[first - 1] <= BEFORE * cells:
        first -= 1
        used += widths[first]
    last = position + 1
    while last < len(tokens) and used + widths[last] <= cells:
        used += widths[last]
        last += 1
    while first and used + widths[first - 1] <= cells:
        first -= 1
        used += widths[first]
    return range(first, last)


def _put(axis: Axes, x: float, y: float, text: str, colour: str = "black") -> None:
    """A token at a cell of a line; no letter is interpreted as markup."""
    y += 0.2  # from the middle of the line to the baseline
    axis.text(
        x, y, text, fontfamily=fonts()[0], fontsize=SIZE, va="baseline", color=colour,
        parse_math=False, in_layout=False,
    )  # fmt: skip


def _contexts(axis: Axes, own: pd.DataFrame) -> pd.DataFrame:
    """Draw shaded lines of text; returns what is drawn, one row per token."""
    axis.set(xlim=(0, CELLS), ylim=(CONTEXTS + 0.7, -0.5))
    axis.axis("off")
    rows = []
    largest = own["activation"].max()
    for y, context in enumerate(own.to_dict("records")):
        tokens = [drawable(token) for token in context["tokens"]]
        position = int(context["position"])
        x = 0
        for i in line(tokens, position, CELLS):
            value = float(context["activations"][i])
            shade = 0.0 if np.isnan(value) else min(1.0, value / largest)
            width = _cells(tokens[i])
            if width and (shade > 0 or i == position):
                edge = "black" if i == position else "none"
                box = Rectangle(
                    (x, y - 0.41), width, 0.82, facecolor=(SHADE, shade), edgecolor=edge,
                    linewidth=0.5,
                )  # fmt: skip
                axis.add_patch(box)
            if tokens[i].strip():
                _put(axis, x, y, tokens[i])
            x += width
            about = {"panel": "context", "rank": context["rank"], "block": context["block"]}
            about |= {"offset": context["offset"] - position + i, "token": context["tokens"][i]}
            rows.append(about | {"value": value, "shade": shade, "own": i == position})
    return pd.DataFrame(rows)


def _promoted(axis: Axes, own: pd.DataFrame) -> pd.DataFrame:
    """Draw the line of promoted tokens; returns what is drawn, one row per token."""
    columns = ["panel", "rank", "token"]
    tokens = [str(token) for token in own["promoted"].iloc[0]][:PROMOTED]
    if not tokens:
        return pd.DataFrame(columns=columns)
    x, y, rows = 0, CONTEXTS + 0.15, []
    _put(axis, x, y, "promotes", "0.35")
    x += 10
    for rank, token in enumerate(tokens, 1):
        text = drawable(token).replace(" ", "␣")
        if x + _cells(text) > CELLS:
            break
        _put(axis, x, y, text)
        x += _cells(text) + 2
        rows.append({"panel": "promoted", "rank": rank, "token": token})
    return pd.DataFrame(rows, columns=columns)

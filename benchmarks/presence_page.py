"""docs/presence.md's table, sentences and figure, from benchmarks/results/presence.json.

Every number of those sentences is put in from the rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.page import replace_part
from ontogeny.figures import style

PAGE = Path("docs/presence.md")
PLOT = Path("docs/presence.png")
WORLD, TABLE, READING, TELLS, CAPTION = (
    (f"<!-- {name} -->", f"<!-- /{name} -->")
    for name in ("world", "presence", "reading", "tells", "caption")
)
DEFAULT, PAPER = "batch_topk_snapshot", "paper"
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
FAMILY = {"paper": ORANGE, "per_": "#E69F00", "batch": BLUE, "relu": "#CC79A7", "llama": "#444444"}


def write(found: dict[str, Any]) -> None:
    """Put the rows into the page, and draw the figure."""
    for marks, text in (
        (WORLD, world(found["about"])),
        (TABLE, table(found["rows"])),
        (READING, reading(found["rows"])),
        (TELLS, tells(found)),
        (CAPTION, caption(found)),
    ):
        replace_part(marks, text, PAGE)
    draw(found)


def world(about: dict[str, Any]) -> str:
    """What was planted, in a sentence of its numbers."""
    share, (train, held_out) = about["variance"], about["rows"]
    return (
        f"There are {about['true_features']} features at {about['snapshots']} snapshots of width "
        f"{about['width']}, in {train:,} rows for training and {held_out:,} held out. "
        f"On average {about['active']:.1f} of them are active per token and snapshot; "
        f"{about['rare']:.0%} fire on fewer than 0.3% of the tokens. The features make up "
        f"{share['features']:.0%} of the variance, three dense directions {share['dense']:.0%}, "
        f"and noise {share['noise']:.0%}."
    )


def _spread(row: dict[str, Any], key: str, form: str = ".3f") -> str:
    """Mean over seeds with the least and the largest, where they differ as written."""
    mean, low, high = (format(row[key + end], form) for end in ("", "_low", "_high"))
    return mean if low == high else f"{mean} [{low}, {high}]"


def table(rows: list[dict[str, Any]]) -> str:
    """One line per loss, Markdown."""
    lines = [
        "| loss | F1 | F1 at ¼ | AUC | found | rare ones | relays (frequent) | births | deaths "
        "| absent < 0.1 | EV | L0 | dead | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"**{row['label']}**" if row["loss"] == DEFAULT else row["label"]
        lines.append(
            f"| {name} | {_spread(row, 'f1')} | {row['f1_quarter']:.3f} | {row['auc']:.4f} "
            f"| {row['recovered']:.2f} | {row['recovered_rare']:.2f} "
            f"| {_spread(row, 'relays', '.0f')} ({row['relays_frequent']:.0f}) "
            f"| {row['birth_within_one']:.3f} | {row['death_within_one']:.3f} "
            f"| {row['absent_below_tenth']:.2f} | {row['explained_variance']:.3f} "
            f"| {row['l0']:.1f} | {row['dead']:.2f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def _by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["loss"]: row for row in found["rows"]}


def reading(rows: list[dict[str, Any]]) -> str:
    """What the table shows, as a list of sentences with their numbers."""
    of = {row["loss"]: row for row in rows}
    default, peer, short = of[DEFAULT], of["llamascopium"], of["paper_short"]

    def relays(name: str) -> str:
        return f"{of[name]['relays']:.0f}"

    alike = [
        row["label"]
        for row in rows
        if row["f1_high"] >= default["f1_low"] and row["relays_frequent"] < 1 and row is not default
    ]
    falling = of["batch_topk_k_start"]
    said = [
        "With BatchTopK and one gate per snapshot, the norm detects presence with an F1 of "
        f"{default['f1']:.4f}. Within the spread of the seeds these losses do as well or better, "
        "and have on average less than one frequent feature in a relay: "
        f"{'; '.join(alike)}.",
        f"A falling k finds more features, {falling['recovered']:.0%} of all and "
        f"{falling['recovered_rare']:.0%} of the rare ones, with an F1 of {falling['f1']:.4f}. But "
        f"{falling['relays']:.1f} features are in relays, {falling['relays_frequent']:.1f} of them "
        f"frequent, compared with {default['relays']:.1f} and {default['relays_frequent']:.1f}.",
        "With the paper's loss the result depends on where the thresholds begin and, without a "
        f"sparse start, on λ. If they begin at 0.1, {relays('paper')} features are in relays at "
        f"λ 0.1 and {relays('paper_published')} at λ 0.3; with a sparse start there are "
        f"{relays('paper_sparse_start')} and {relays('paper_sparse_strong')}.",
        "The paper's library and our trainer of the same loss, after the same number of steps, "
        f"reach an F1 of {peer['f1']:.3f} and {short['f1']:.3f}, with {peer['relays']:.0f} and "
        f"{short['relays']:.0f} features in relays. They find {peer['recovered']:.2f} and "
        f"{short['recovered']:.2f} of the true features, and take {peer['seconds']:.0f} and "
        f"{short['seconds']:.0f} s.",
        f"ReLU with L1 finds {of['relu']['recovered']:.0%} of the features, at an explained "
        f"variance of {of['relu']['explained_variance']:.2f}, and has {relays('relu')} features in "
        "relays.",
    ]
    return "\n".join(f"- {sentence}" for sentence in said)


def tells(found: dict[str, Any]) -> str:
    """What a norm can and cannot show, as a list of sentences with their numbers."""
    rows = _by_name(found)
    row, paper = rows[DEFAULT], rows[PAPER]
    kinds = row["by_kind"]
    losses = [r for r in found["rows"] if not r["loss"].endswith("_short")]
    early = row["recoded"]
    can = [
        f"**Presence.** F1 is {_spread(row, 'f1', '.4f')} with BatchTopK and one gate per "
        f"snapshot, and the cut matters little: {row['f1_quarter']:.3f} at ¼. Every loss of full "
        f"length has an F1 of at least {min(r['f1'] for r in losses):.3f}.",
        f"**Birth and death.** {row['birth_within_one']:.1%} of the births and "
        f"{row['death_within_one']:.1%} of the deaths are dated to within one snapshot; the median "
        f"error is {row['birth_error_median']:.0f} snapshots.",
        f"**Return.** Features that reappear are detected as well as any others: F1 is "
        f"{kinds['reappearing']['f1']:.3f}, and {kinds['reappearing']['false']:.1%} of their "
        f"absences are overlooked. For {row['holes']:.1%} of the features the norm shows a gap "
        f"that does not exist; with the paper's loss at λ 0.3 for "
        f"{rows['paper_published']['holes']:.1%}.",
        f"**Rare features.** {row['recovered_rare']:.0%} of them are found, compared with "
        f"{row['recovered']:.0%} of all features. For those that are found, the norm detects "
        f"presence with an F1 of {row['f1_rare']:.3f}.",
    ]
    cannot = [
        "**Whether a norm above zero means anything.** Only "
        f"{row['absent_below_tenth']:.0%} of the norms at absent snapshots are below a tenth of "
        "the peak: where a gate never opens, the decoder gets no gradient and does not shrink. "
        "Compare the norm with ½ of the peak; a small norm has no meaning as an amount.",
        "**That one concept is one feature.** With the paper's loss "
        f"{_spread(paper, 'relays', '.0f')} features ({paper['relays_frequent']:.0f} of them "
        "frequent) are in relays: the life of one true feature is cut in two, with a false death "
        "and a false birth. With λ 0.3, the published value, there are "
        f"{rows['paper_published']['relays']:.0f}, with a sparse start "
        f"{rows['paper_sparse_start']['relays']:.0f}, and with BatchTopK {row['relays']:.0f}.",
        f"**A split.** After a parent has split, its norm still says present in "
        f"{kinds['parent']['false']:.0%} of the cases. The norms of its children say present "
        f"before the split in {kinds['child']['false']:.0%}. With splits counted, F1 is "
        f"{row['f1_with_splits']:.3f}.",
        "**A twin.** A twin fires together with an older feature 0.8 of the time. Its norm says "
        f"present at {kinds['twin']['false']:.0%} of the snapshots before its birth, and the "
        f"older feature's norm says absent at {kinds['elder']['missed']:.0%}: where both are "
        "learned as one feature, its norm before the birth is near ½.",
        "**A code without a lasting direction.** Before a feature's direction settles, its norm "
        f"averages {row['settling']['norm_before']:.2f} of its peak: the norm measures "
        "strength, not meaning. The direction shows the difference: a cosine of ½ with the last "
        f"snapshot's decoder, as a criterion, has an F1 of {row['settling']['f1_direction']:.3f}.",
        "**A code that changes.** Where a feature fires at early snapshots on only 0.8, 0.6, "
        "0.4 or 0.2 of its later tokens, although at full strength, the norm there is "
        + ", ".join(f"{value:.2f}" for value in early.values())
        + " of the peak. A low norm can mean that the feature fires on other tokens; it need not "
        "mean that the feature is absent.",
    ]  # fmt: skip
    return "\n".join(["It can show:", "", *(f"- {s}" for s in can), "", "It cannot show:", "",
                      *(f"- {s}" for s in cannot)])  # fmt: skip


def caption(found: dict[str, Any]) -> str:
    """The figure's caption, its finding first."""
    row, paper = (_by_name(found)[name] for name in (DEFAULT, PAPER))
    return (
        "*Normalised norms separate absence from presence with BatchTopK (F1 "
        f"{row['f1']:.3f}); the paper's loss puts {paper['relays']:.0f} features into relays (F1 "
        f"{paper['f1']:.3f}). **a, b** Norms of found plain features at snapshots where they are "
        "present and absent in truth, all seeds; the dashed line is the cut. **c** A relay: two "
        "learned features share one true one. **d–f** One point per seed, a bar for their mean.*"
    )


def draw(found: dict[str, Any]) -> None:
    """Norms where features are present and absent, a relay, and three measures of each loss."""
    rows = _by_name(found)
    with style.paper():
        figure = style.new_figure(183, 135)
        parts: Any = figure.subfigures(2, 1, height_ratios=[1, 1.4])
        above, below = parts
        first, second, relay = above.subplots(1, 3)
        for axes, letter, name, label in (
            (first, "a", PAPER, "paper's loss"),
            (second, "b", DEFAULT, "BatchTopK per snapshot"),
        ):
            _norms(axes, rows[name], found["about"]["bins"])
            style.title(axes, letter, f"{label}: F1 {rows[name]['f1']:.3f}")
        second.sharey(first)
        first.set_ylabel("features × snapshots")
        first.legend(loc="upper center", frameon=True, edgecolor="none", framealpha=1)
        _relay(relay, rows[PAPER]["relay"])
        style.title(relay, "c", "one true feature learned as two")
        for axes, letter, key, text in zip(
            below.subplots(1, 3, sharey=True),
            "def",
            ("f1", "relays", "recovered"),
            ("F1 of norm ≥ ½", "features in relays", "true features found"),
            strict=True,
        ):
            _points(axes, found["rows"], key)
            style.title(axes, letter, text)
        figure.savefig(PLOT, dpi=200)


def _norms(axes: Axes, row: dict[str, Any], bins: list[float]) -> None:
    for key, colour in (("absent", ORANGE), ("present", BLUE)):
        axes.stairs(row[key], bins, color=colour, fill=True, alpha=0.75, label=key)
    axes.axvline(0.5, color="black", linestyle="--", linewidth=0.8)
    axes.set(xlabel="normalised decoder norm", yscale="log", xlim=(0, 1))


def _relay(axes: Axes, relay: dict[str, Any] | None) -> None:
    if relay is None:
        style.empty(axes, "no relay")
        return
    snapshots = np.arange(1, len(relay["strength"]) + 1)
    axes.plot(snapshots, relay["strength"], color=GREY, linewidth=3, label="true strength")
    for key, colour in (("falling", ORANGE), ("rising", BLUE)):
        axes.plot(snapshots, relay[key], "o-", color=colour, label=f"norm, {key}")
    axes.axhline(0.5, color="black", linestyle="--", linewidth=0.8)
    axes.set(xlabel="snapshot", ylabel="normalised", ylim=(-0.03, 1.7), yticks=[0, 0.5, 1])
    axes.legend(loc="upper left")


def _points(axes: Axes, rows: list[dict[str, Any]], key: str) -> None:
    labels = [row["label"] for row in rows]
    for y, row in enumerate(rows):
        colour = next(c for name, c in FAMILY.items() if row["loss"].startswith(name))
        values = row[f"{key}_seeds"]
        axes.plot(values, [y] * len(values), "o", color=colour, alpha=0.6, markersize=4)
        axes.plot(row[key], y, "|", color=colour, markersize=11, markeredgewidth=1.6)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", linewidth=0.4, color="0.9")
    axes.set_axisbelow(True)

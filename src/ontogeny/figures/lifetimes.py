"""How long features live, when they appear, and how the classes depend on the threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ontogeny.figures import style

KINDS = ("initialisation", "emergent", "transient")
LIFETIME_BINS = np.linspace(0, 1, 17)
ONSET_BINS = 20


def draw(features: str | Path, classes: str | Path, output: str | Path) -> None:
    """Lifetimes by class, onsets of the emergent features, and the classes' threshold sweep.

    Transient features are drawn apart; 'kept' are those that still stand at the last snapshot.

    Parameters
    ----------
    features : the features table; feature, alive, matched, matched_cosine, lifetime, onset_step,
        initialisation, emergent, transient.
    classes : the sweep; presence, initialisation, emergent, transient (counts, living features).
    output : path without ending. Its CSV has panel ('lifetime', 'onset_log', 'onset_linear',
        'onset_cumulative', 'sweep'), group ('all', 'matched'), class, low, high, value: a count
        in the bin [low, high), the last bin closed; for 'onset_cumulative' the number of features
        with onset at or before low; for 'sweep' the count at threshold low.

    References
    ----------
    METHOD.md 4 and 8.
    """
    living = style.read_living(features, ["lifetime", "onset_step", *KINDS])
    sweep = style.read(classes, ["presence", *KINDS])
    emergent = living[living["emergent"]]
    groups = {"all": emergent, "matched": emergent[emergent["matched"]]}
    last = max(1.0, emergent["onset_step"].max()) if len(emergent) else 1.0
    drawn: list[pd.DataFrame] = []
    with style.paper():
        figure = style.new_figure(180, 125)
        grid = figure.subplots(2, 3)
        _lifetimes(grid[0, 0], living, "all", drawn)
        _lifetimes(grid[0, 1], living[living["matched"]], "matched", drawn)
        style.title(grid[0, 0], "a", f"all living ({len(living):,})")
        style.title(grid[0, 1], "b", f"matched alone ({living['matched'].sum():,})")
        _sweep(grid[0, 2], sweep, drawn)
        style.title(grid[0, 2], "c", "classes by threshold, all living")
        edges = {
            "log": np.expm1(np.linspace(0, np.log1p(last), ONSET_BINS + 1)),
            "linear": np.linspace(0, last, ONSET_BINS + 1),
        }
        for letter, axis, kind in zip("de", grid[1], style.KINDS, strict=False):
            for group, some in groups.items():
                counts, _ = np.histogram(some["onset_step"].clip(upper=last), edges[kind])
                # expm1(log1p(x)) may fall short of x by rounding
                counts[-1] += int((some["onset_step"] > edges[kind][-1]).sum())
                axis.stairs(counts, edges[kind], fill=True, color=style.COLOURS[group], label=group)
                drawn.append(_binned(f"onset_{kind}", group, "emergent", edges[kind], counts))
            style.step_axis(axis, last, kind)
            axis.set_xlabel("onset, training step" + (" (log axis)" if kind == "log" else ""))
            axis.set_ylabel("features")
            axis.yaxis.get_major_locator().set_params(integer=True)
            style.title(axis, letter, f"onsets, emergent ({len(emergent):,})")
            axis.legend(loc="upper left" if kind == "log" else "upper right")
        _cumulative(grid[1, 2], groups, last, drawn)
        style.title(grid[1, 2], "f", "onsets up to a step")
        figure.suptitle(style.matched_note(living), x=0.01, ha="left")
        style.save(figure, pd.concat(drawn, ignore_index=True), output)


def _binned(
    panel: str, group: str, name: str, edges: np.ndarray, counts: np.ndarray
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "panel": panel,
            "group": group,
            "class": name,
            "low": edges[:-1],
            "high": edges[1:],
            "value": counts,
        }
    )


def _lifetimes(axis: Axes, some: pd.DataFrame, group: str, drawn: list[pd.DataFrame]) -> None:
    """Stacked histogram: features kept to the end by class, transient ones on top."""
    parts = {
        "initialisation": some["initialisation"] & ~some["transient"],
        "emergent": some["emergent"] & ~some["transient"],
        "transient": some["transient"],
    }
    below = np.zeros(len(LIFETIME_BINS) - 1)
    width = np.diff(LIFETIME_BINS)
    for name, chosen in parts.items():
        counts, _ = np.histogram(some.loc[chosen, "lifetime"], LIFETIME_BINS)
        label = (
            f"{name} ({chosen.sum():,})"
            if name == "transient"
            else (f"{name}, kept ({chosen.sum():,})")
        )
        axis.bar(
            LIFETIME_BINS[:-1],
            counts,
            width,
            bottom=below,
            align="edge",
            color=style.COLOURS[name],
            edgecolor="white",
            linewidth=0.3,
            label=label,
        )
        drawn.append(_binned("lifetime", group, name, LIFETIME_BINS, counts))
        below = below + counts
    axis.set_xlim(0, 1)
    axis.set_ylim(0, max(1.0, 1.3 * below.max()))
    axis.set_xlabel("lifetime (share of snapshots)")
    axis.set_ylabel("features")
    axis.legend(loc="upper left")


def _sweep(axis: Axes, sweep: pd.DataFrame, drawn: list[pd.DataFrame]) -> None:
    for name, marker in zip(KINDS, "osD", strict=True):
        axis.plot(
            sweep["presence"], sweep[name], color=style.COLOURS[name], marker=marker, label=name
        )
        drawn.append(
            pd.DataFrame(
                {
                    "panel": "sweep",
                    "group": "all",
                    "class": name,
                    "low": sweep["presence"],
                    "high": sweep["presence"],
                    "value": sweep[name],
                }
            )
        )
    axis.set_ylim(bottom=0)
    axis.set_xticks(sweep["presence"])
    axis.set_xlabel("presence threshold")
    axis.set_ylabel("features")
    axis.legend(loc="best")


def _cumulative(
    axis: Axes, groups: dict[str, pd.DataFrame], last: float, drawn: list[pd.DataFrame]
) -> None:
    for group, some in groups.items():
        x = np.sort(some["onset_step"].to_numpy())
        counts = np.arange(1, len(x) + 1)
        colour = "0.35" if group == "all" else style.COLOURS[group]
        steps, values = np.r_[0, x, last], np.r_[0, counts, len(x)]
        axis.step(steps, values, where="post", color=colour, label=f"{group} ({len(x):,})")
        drawn.append(
            pd.DataFrame(
                {
                    "panel": "onset_cumulative",
                    "group": group,
                    "class": "emergent",
                    "low": steps,
                    "high": steps,
                    "value": values,
                }
            )
        )
    style.step_axis(axis, last, "log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("onset, training step (log axis)")
    axis.set_ylabel("emergent features")
    axis.legend(loc="upper left")

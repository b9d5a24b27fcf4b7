"""What the start page names: the earliest emergent feature, and telling features of each phase.

Phases are parts of the training. They are separated by the steps at which the held-out loss falls
below what token frequencies alone (the unigram level) and pairs of tokens alone (the bigram level)
achieve. An emergent feature belongs to the phase of its onset. Features that are present at the
first snapshot come before all phases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ontogeny.atlas import pack
from ontogeny.corpus.pieces import visible
from ontogeny.features.contexts import Context, Store
from ontogeny.features.described import DOUBTS, UNTESTED

TELLING = 10  # most features shown for a phase
OFTEN = 20  # least number of positions at which a telling feature is active
WEAK = 0.25  # largest relative norm at the first snapshot that the earliest feature may have
LEVELS = ("unigram", "bigram")


def choose(
    table: pd.DataFrame, levels: dict[str, Any], strength: np.ndarray, store: Store | None
) -> dict[str, Any]:
    """What the start page shows, as JSON.

    Parameters
    ----------
    table : of the living features, as in `Contents`, with `trusted`. levels : levels.json.
    strength : (L, n) decoder norms. store : contexts, or None.

    Returns
    -------
    earliest : the earliest emergent feature that can be trusted and is weak at the first snapshot,
    or None; first : place of the earliest emergent feature, if it is another one; phases : low and
    high (steps, None if open), after and until (levels passed there; 'first' for features present
    at the first snapshot), count of all features, and the telling ones; often, weak : OFTEN, WEAK.
    """

    def entries(places: np.ndarray) -> list[dict[str, Any]]:
        return [_entry(int(p), int(table["feature"][p]), strength[p], store) for p in places]

    emergent = table.index[table["emergent"]].to_numpy()
    emergent = emergent[np.argsort(table["onset_step"].to_numpy()[emergent], kind="stable")]
    grown = strength[:, 0] <= WEAK * strength.max(1)
    trusted = emergent[(table["trusted"].to_numpy() & grown)[emergent]]
    listed = [
        phase | {"count": len(places), "features": entries(telling(table.loc[places]))}
        for phase, places in phases(table, levels)
    ]
    return {
        "earliest": entries(trusted[:1])[0] if len(trusted) else None,
        "first": int(emergent[0]) if len(emergent) and emergent[0] not in trusted[:1] else None,
        "phases": listed,
        "often": OFTEN,
        "weak": WEAK,
    }


def phases(
    table: pd.DataFrame, levels: dict[str, Any]
) -> list[tuple[dict[str, Any], np.ndarray[Any, Any]]]:
    """Each phase with the places of its features; phases that training does not reach are left out.

    A level that the loss does not cross does not end a phase.
    """
    place, onset = table.index.to_numpy(), table["onset_step"].to_numpy()
    emergent = table["emergent"].to_numpy()
    first = {"low": None, "high": None, "after": None, "until": "first"}
    found = [(first, place[table["initialisation"]])]
    low, after = None, None
    for until in (*LEVELS, None):
        high = None if until is None else levels.get(f"{until}_crossing_step")
        if until is not None and (high is None or high <= (low or 0)):
            continue
        inside = emergent & (onset >= (low or 0)) & (onset < (np.inf if high is None else high))
        found.append(({"low": low, "high": high, "after": after, "until": until}, place[inside]))
        low, after = high, until
    return found


def trusted(table: pd.DataFrame, held_out: int) -> pd.Series:
    """Whether a feature is frequent, has no doubt about its life, and is found in another seed.

    With only one seed, the last condition is not applied.

    Parameters
    ----------
    held_out : number of rows that `density` is a share of.
    """
    holds = table["density"] * held_out >= OFTEN - 0.5
    if table["matched_cosine"].notna().any():
        holds &= table["matched"]
    for doubt in set(DOUBTS) & set(table):
        holds &= ~table[doubt].astype(bool)
    return holds


def telling(table: pd.DataFrame) -> np.ndarray:
    """Places of at most TELLING of the features in a table, by onset.

    Features that meet most of these conditions are taken: they are trusted, they have a kind, and
    a rule names them beyond their strongest contexts. Ties go to the feature whose match has the
    larger cosine. No two have the same name and kind.
    """
    kind = table.get("kind", pd.Series("none", table.index))
    name = table.get("name", pd.Series("", table.index)).fillna("")
    named = (name != "") & ~table.get("strongest", pd.Series(False, table.index)).eq(True)
    points = 3 * table["trusted"] + ~kind.isin(["none", UNTESTED]) + named
    ranked = table.assign(points=points, kind=kind, name=name).sort_values(
        ["points", "matched_cosine", "feature"], ascending=[False, False, True], kind="stable"
    )
    again = ranked.duplicated(["kind", "name"]) & (ranked["name"] != "")
    taken = ranked[~again].head(TELLING)
    return taken.sort_values(["onset_step", "settled_step"], kind="stable").index.to_numpy()


def _entry(place: int, feature: int, strength: np.ndarray, store: Store | None) -> dict[str, Any]:
    """A feature of the start page: its place, its normalised curve, its strongest context."""
    shown: dict[str, Any] = {"place": place, "curve": pack.shares(strength / strength.max())}
    if store is not None:
        top = store.feature(feature).top
        shown["context"] = line(top[0]) if top else None
    return shown


def line(context: Context, before: int | None = None, after: int | None = None) -> str:
    """Text around a position, with tabs before and after the text at the position.

    A token that only continues a character is shown as the character that it is a part of.
    """
    at = own(context)
    tokens = [visible(text) for text in context.texts]
    low = 0 if before is None else max(0, at - before)
    high = len(tokens) if after is None else at + 1 + after
    return "\t".join(["".join(tokens[low:at]), tokens[at], "".join(tokens[at + 1 : high])])


def own(context: Context) -> int:
    """Index in the window of the text that shows the position's token."""
    at = context.offset - context.start
    while at > 0 and not context.texts[at]:
        at -= 1
    return at

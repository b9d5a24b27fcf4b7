"""The kind of each feature: by cause if that was tested, else by rule (docs/method.md 6).

The causes (causes.py) are tested in this order. A loss has to be at least `loss`, as a share:

    induction       lost when the tokens after the earlier copies are replaced, and at most
                    `control` when as many other tokens are. It is tested first: an induction
                    feature needs the copies, so it loses everything when all tokens before the pair
                    are replaced, and it needs x_{t−1}, by which the copies are found.
    previous_token  lost when x_{t−1} is replaced, and at most `control` when another token is. A
                    single token that accounts for half precedes all others together.
    context         lost when everything before x_{t−1} is replaced

A feature that loses less under all of them depends on the current token, on the position, or on
something without a name. Replacements cannot separate these: with another x_t the question changes,
and a position cannot be replaced. So the rule decides (rules.py): the larger of the two shares of
variance names the kind, if it passes its null.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ontogeny import devices
from ontogeny.analyses.kinds import rules
from ontogeny.analyses.kinds.causes import CONTROLLED, REPLACED
from ontogeny.analyses.kinds.settings import Kinds
from ontogeny.corpus.build import Tokens
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.features.described import KINDS, UNTESTED
from ontogeny.features.held_out import held_out
from ontogeny.files import InputError, read_table, write_table
from ontogeny.settings import Settings


def by_cause(losses: pd.DataFrame, section: Kinds) -> pd.Series:
    """The kind of each feature by cause, indexed by feature.

    'none' if it keeps its activation under all replacements; UNTESTED if it has too few positions.

    Parameters
    ----------
    losses : the causes table; feature, replaced, positions, loss, control.
    """
    wide = {
        name: losses.pivot(index="feature", columns="replaced", values=name)
        for name in ("positions", "loss", "control")
    }
    enough = wide["positions"] >= section.active
    lost = enough & (wide["loss"] >= section.loss)
    kept = wide["control"] <= section.control
    previous = lost["previous_token"] & kept["previous_token"]
    induction = lost["induction"] & kept["induction"]
    tested = enough["previous_token"] & enough["context"]
    chosen = [induction, tested & previous, tested & lost["context"], tested]
    names = ["induction", "previous_token", "context", "none"]
    return pd.Series(np.select(chosen, names, UNTESTED), lost.index)


def kind_of(table: pd.DataFrame, section: Kinds) -> pd.Series:
    """The kind of each feature: by cause if one is found, by rule if it was not tested.

    Parameters
    ----------
    table : cause, rule, the shares of current_token and position with their nulls, active.
    """
    shares = table[["current_token", "position"]]
    passed = pd.DataFrame({name: table[name] > table[f"{name}_null"] for name in shares})
    shares = shares.where(passed, -1)
    fine = (shares.max(axis=1) >= section.share) & (table["active"] >= section.active)
    rest: pd.Series[str] = shares.idxmax(axis=1).astype(str).where(fine, "none")
    kind = table["cause"].mask(table["cause"] == UNTESTED, table["rule"])
    return kind.mask(table["cause"] == "none", rest)


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Counts of features by rule and cause: rule, cause, features; all pairs are listed."""
    names = [*KINDS, "none"]
    causes = [name for name in names if name not in ("current_token", "position")] + [UNTESTED]
    counts = table.groupby(["rule", "cause"]).size()
    every = pd.MultiIndex.from_product([names, causes], names=["rule", "cause"])
    return counts.reindex(every, fill_value=0).rename("features").reset_index()


def measure(
    settings: Settings,
    crosscoder: Path,
    activations: Path,
    tokens: Path,
    causes: Path,
    kinds: Path,
    agree: Path,
    control: Path,
) -> None:
    """Write the kinds of a crosscoder's features, and what the rules find in permuted activations.

    Parameters
    ----------
    crosscoder : folder of a seed. activations : the experiment's folder. tokens : tokens.h5.
    causes : the causes table. kinds : Parquet; one row per feature that is active on the held-out
        text: its scores and losses, its kind by rule and by cause, and its final kind.
    agree : CSV; rule, cause, features.
    control : CSV; kind, and the number of features of that kind: finally (features), by rule
        (rule), and by rule when every feature's activations are permuted over all positions
        (permuted).
    """
    section, seed = settings.section(Kinds), settings.analysis.seed
    trained = Crosscoder.load(crosscoder, devices.choose(settings.device))
    f, position = held_out(trained, activations)
    data = Tokens(tokens)
    first, last = data.splits["held_out"]
    block = position[:, 0].astype(np.int64) - first
    p = rules.Positions(data.take(np.arange(first, last)), block, position[:, 1].astype(np.int64))
    losses = read_table(causes)
    living = np.flatnonzero(np.asarray((f > 0).sum(0)).ravel())
    if set(living) != set(losses["feature"]):
        raise InputError(f"{causes}: made for another crosscoder than {crosscoder}; make it again")
    f = f[:, living]
    found = rules.table(f, p, section, seed)
    found.insert(0, "feature", living)
    for name in REPLACED:
        by_feature = losses[losses["replaced"] == name].set_index("feature").reindex(living)
        by_feature = by_feature.where(by_feature["positions"] >= section.active)
        found[f"{name}_loss"] = by_feature["loss"].to_numpy()
        if name in CONTROLLED:
            found[f"{name}_control"] = by_feature["control"].to_numpy()
    found["cause"] = by_cause(losses, section).reindex(living).to_numpy()
    found["kind"] = kind_of(found, section)
    rng = np.random.default_rng(seed + 1)
    permuted = rules.table(f[rng.permutation(f.shape[0])], p, section, seed)
    columns = {"features": found["kind"], "rule": found["rule"], "permuted": permuted["rule"]}
    counts = {
        name: column.value_counts().reindex([*KINDS, "none"], fill_value=0)
        for name, column in columns.items()
    }
    write_table(control, pd.DataFrame(counts).rename_axis("kind").reset_index())
    write_table(agree, agreement(found))
    write_table(kinds, found)

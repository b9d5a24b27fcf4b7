"""The atlas's passages: texts that every snapshot has read, one data file each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ontogeny.atlas import pack
from ontogeny.corpus.pieces import visible
from ontogeny.experiment import Experiment
from ontogeny.files import InputError

BEGINNING = 48  # first characters of a passage, shown to choose it by


def gather(experiment: Experiment) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The tables of the analysis `passages`, or None if the experiment does not have it."""
    if not experiment.has("passages"):
        return None
    return experiment.table("passages"), experiment.table("passage_features")


def write(
    draft: Path, tables: tuple[pd.DataFrame, pd.DataFrame], living: np.ndarray, steps: list[int]
) -> None:
    """Write the list of the passages, and one file for each.

    Parameters
    ----------
    tables : from `gather`. living : (L,) numbers of the features that have a page.
    steps : (n,) of the snapshots.

    Raises
    ------
    InputError : the tables belong to other snapshots.
    """
    read, features = tables
    features = features[features["feature"].isin(living)]
    if sorted(set(read["step"])) != steps:
        raise InputError("passages: of other snapshots than the features; make them again")
    active = dict(list(features.groupby("passage")))
    listed = []
    for number, own in read.groupby("passage"):
        there = active.get(number, features.iloc[:0])
        pack.write(draft, f"passages/{number}", pack.plain(_passage(own, there, living, steps)))
        tokens = own.drop_duplicates("position")["token"]
        begins = visible("".join(tokens).strip())[:BEGINNING]
        source = str(own["source"].iloc[0])
        listed.append({"source": source, "begins": begins, "size": len(tokens)})
    pack.write(draft, "passages", listed)


def _passage(
    read: pd.DataFrame, active: pd.DataFrame, living: np.ndarray, steps: list[int]
) -> dict[str, Any]:
    """The contents of a passage's file: arrays over its T tokens and n snapshots."""
    read = read.sort_values(["position", "step"])
    k = sum(str(column).startswith("next_") for column in read)
    following = read[[f"next_{i + 1}" for i in range(k)]].to_numpy()
    own = read.drop_duplicates("position")["token"].to_numpy()
    words = {text: i for i, text in enumerate(dict.fromkeys([*own, *following.ravel()]))}
    probability = read[[f"probability_{i + 1}" for i in range(k)]].to_numpy()
    at = pd.MultiIndex.from_product([range(len(own)), steps], names=["position", "step"])
    active = active.sort_values(
        ["position", "step", "contribution"], ascending=[True, True, False], kind="stable"
    )
    counts = active.groupby(["position", "step"]).size().reindex(at, fill_value=0)
    value = active["contribution"].to_numpy()
    scale = float(value.max(initial=1e-30))
    return {
        "words": [visible(text) for text in words],
        "predictions": k,
        "word": pack.array([words[text] for text in own]),
        "loss": pack.array(read["loss"], "f4"),
        "next": pack.array([words[text] for text in following.ravel()]),
        "probability": pack.shares(probability.ravel()),
        "active": pack.array(counts),
        "place": pack.array(np.searchsorted(living, active["feature"])),
        "value": pack.levels(value, scale),
        "scale": scale,
    }

"""The dictionaries of the fidelity frontier, which the configuration does not list one by one.

They have names such as frontier-F1024-k8 and, for an SAE of step 1500 alone, sae-1500-F1024-k8;
lambda0.1 replaces k8 if λ sets the sparsity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ontogeny.analyses.frontier.settings import Frontier
from ontogeny.settings import Crosscoder, Settings

FRONTIER, SAE = "frontier-", "sae-"  # prefixes of the names of the frontier's dictionaries


def crosscoders(settings: Settings) -> dict[str, tuple[Crosscoder, dict[str, str]]]:
    """The dictionaries by name, first the crosscoders, then each snapshot's SAEs.

    Each comes with the keys of the section that set its `basis` and `learning_rate`, if any.
    """
    try:
        section = settings.section(Frontier)
    except LookupError:
        return {}
    primary = settings.crosscoders[settings.primary]
    if primary.activation == "batch_topk":
        sparsities: list[tuple[str, dict[str, Any]]] = [(f"k{k}", {"k": k}) for k in section.k]
    else:
        sparsities = [(f"lambda{w:g}", {"sparsity": w}) for w in section.sparsity]
    shared: dict[str, Any] = {"seeds": section.seeds}
    if section.steps is not None:
        shared["steps"] = section.steps
    kinds: dict[str, dict[str, Any]] = {FRONTIER: {}}
    for step in sae_steps(settings):
        one = {"snapshots": [step]}
        own: dict[str, Any] = {"basis": section.sae_basis}
        own["inputs"] = primary.inputs.model_copy(update=one)
        if primary.outputs is not None:
            own["outputs"] = primary.outputs.model_copy(update=one)
        if section.sae_learning_rate is not None:
            own["learning_rate"] = section.sae_learning_rate
        kinds[f"{SAE}{step}-"] = own
    made = {}
    for kind, own in kinds.items():
        names = ("basis", "learning_rate") if kind.startswith(SAE) else ()
        keys = {key: f"frontier.sae_{key}" for key in names}
        for features in section.features:
            sizes = {"features": features}
            if primary.aux:
                aux = min(primary.aux, features)
                sizes |= {"aux_features": aux, "aux_k": max(1, min(primary.aux_k, aux))}
            for name, sparsity in sparsities:
                changed = shared | own | sizes | sparsity
                made[f"{kind}F{features}-{name}"] = primary.model_copy(update=changed), keys
    return made


def sae_steps(settings: Settings) -> list[int]:
    """Training steps of the snapshots for which SAEs are trained."""
    section = settings.section(Frontier)
    if section.sae_snapshots != "last":
        return list(section.sae_snapshots)
    primary = settings.crosscoders[settings.primary]
    sites = primary.written
    return [max(settings.snapshots.chosen if sites.snapshots == "all" else sites.snapshots)]


def faults(s: Settings) -> Iterator[str]:
    """One line for each dictionary of the frontier that is not possible."""
    try:
        f = s.section(Frontier)
    except LookupError:
        return
    primary = s.crosscoders[s.primary]
    key = f"crosscoders.{s.primary}"
    topk = primary.activation == "batch_topk"
    wanted, other = ("k", "sparsity") if topk else ("sparsity", "k")
    if not getattr(f, wanted):
        yield (
            f"frontier.{wanted}: missing, and {key} is {primary.activation}; list the values to "
            "train"
        )
    if getattr(f, other):
        yield f"frontier.{other}: has no effect if {key} is {primary.activation}; remove it"
    for name in ("features", "k", "sparsity", "seeds", "sae_snapshots"):
        values = getattr(f, name)
        if values != "last" and len(set(values)) < len(values):
            yield f"frontier.{name}: a value repeats; remove it"
    if topk and f.k and max(f.k) > min(f.features):
        yield (
            f"frontier.k: {max(f.k)} exceeds the {min(f.features)} features of the smallest "
            "dictionary; lower it, or raise frontier.features"
        )
    shared = [n for n in f.features if n % primary.devices]
    if shared:
        yield (
            f"frontier.features: {shared[0]} is not divisible by {key}.devices, "
            f"{primary.devices}; choose a number that is"
        )
    if not f.sae_snapshots:
        yield "frontier.sae_snapshots: the list is empty; name training steps, or set last"
    for sites in [x for x in (primary.inputs, primary.outputs) if x is not None]:
        there, where = s.snapshots.steps, "snapshots.steps"
        if sites.snapshots != "all":
            there, where = sites.snapshots, f"the snapshots of {key}"
        absent = [] if f.sae_snapshots == "last" or there == "all" else f.sae_snapshots
        absent = [step for step in absent if step not in there]
        if absent:
            yield f"frontier.sae_snapshots: {absent[0]} is not in {where}; add it there"
            return
    several = primary.gate == "snapshot" or primary.activation == "relu"
    if f.sae_basis == "principal" and (several or primary.outputs is not None):
        yield (
            "frontier.sae_basis: principal needs one gate per feature, no L1, and outputs equal "
            f"to the inputs, unlike {key}; set full"
        )
    if s.snapshots.steps == "all":
        return
    for name in set(crosscoders(s)) & set(s.crosscoders):
        yield f"crosscoders.{name}: this name is used by the analysis frontier; choose another"

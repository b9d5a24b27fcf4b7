"""Dictionaries that a configuration asks for without naming them: the fidelity frontier's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ontogeny.settings.sections import Crosscoder, Frontier

if TYPE_CHECKING:
    from ontogeny.settings.experiment import Settings

FRONTIER, SAE = "frontier-", "sae-"  # what the names of the frontier's dictionaries begin with


def frontier_crosscoders(s: Settings) -> dict[str, Crosscoder]:
    """The frontier's dictionaries, by name: crosscoders first, then each snapshot's SAEs."""
    f, primary = s.frontier, s.crosscoders[s.primary]
    if f is None:
        return {}
    if primary.activation == "batch_topk":
        sparsities: list[tuple[str, dict[str, Any]]] = [(f"k{k}", {"k": k}) for k in f.k]
    else:
        sparsities = [(f"lambda{w:g}", {"sparsity": w}) for w in f.sparsity]
    shared: dict[str, Any] = {"seeds": f.seeds}
    if f.steps is not None:
        shared["steps"] = f.steps
    kinds: dict[str, dict[str, Any]] = {FRONTIER: {}}
    for step in sae_steps(s, f, primary):
        one = {"snapshots": [step]}
        own: dict[str, Any] = {"basis": f.sae_basis}
        own["inputs"] = primary.inputs.model_copy(update=one)
        if primary.outputs is not None:
            own["outputs"] = primary.outputs.model_copy(update=one)
        if f.sae_learning_rate is not None:
            own["learning_rate"] = f.sae_learning_rate
        kinds[f"{SAE}{step}-"] = own
    found = {}
    for kind, own in kinds.items():
        for features in f.features:
            aux = min(primary.aux_features, features)
            sizes = {"features": features, "aux_features": aux}
            sizes["aux_k"] = max(1, min(primary.aux_k, aux))
            for name, sparsity in sparsities:
                found[f"{kind}F{features}-{name}"] = primary.model_copy(
                    update=shared | own | sizes | sparsity
                )
    return found


def sae_steps(s: Settings, f: Frontier, primary: Crosscoder) -> list[int]:
    """Training steps of the snapshots that get SAEs."""
    if f.sae_snapshots != "last":
        return list(f.sae_snapshots)
    sites = primary.outputs or primary.inputs
    return [max(s.snapshots.chosen if sites.snapshots == "all" else sites.snapshots)]

"""The heads stage: what every attention head attends to, and what the model gains from a copy.

A[t, s] is a head's attention from position t to s ≤ t. x are the tokens, T is their number in a
block, d is a distance. Scores are means over positions t, and each has two baselines:

    previous_token       A[t, t−1]        on held-out text
    fixed_distance       A[t, t−d+1]      on held-out text, where x_{t−d} ≠ x_t: no copy at d
    induction            A[t, t−d+1]      in the second of two copies of random tokens, d apart
    duplicate_token      A[t, t−d]        the same
    natural_induction    Σ_j A[t, j+1]    on held-out text: over earlier copies j < t−1 of the pair,
                                          (x_j, x_{j+1}) = (x_t, x_{t+1}), at t that have any

    chance     the score of a head that attends equally to all of t's positions: 1/(t+1) each
    control    the same head on the same positions of the same tokens without the first copy; for
               natural_induction what distance and attended token alone explain: its mean
               attention at the copies' distances in the block, plus its excess over that mean
               from the same t at tokens equal to x_{t+1} that do not follow a token equal to x_t

A head that follows the content exceeds its control. A head that attends to a fixed distance d has
the same induction score at d with and without the copy, and none at other distances. Random tokens
are drawn without replacement, so that the only earlier copy of x_t is the one in the passage.

The copying gain at d is the loss on a passage that occurs for the first time minus the loss on it
as a second copy, d after the first, in nats, for held-out text and for random tokens. The tokens
around either passage do not belong to it.

References
----------
docs/method.md 5; Olsson et al. 2022, In-context learning and induction heads, arXiv 2209.11895.
"""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from ontogeny import devices
from ontogeny.analyses.induction.settings import Induction
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError, whole_hdf5, write_table
from ontogeny.progress import bar
from ontogeny.settings import Settings
from ontogeny.snapshots import sites

MOST_CONTEXT = 1024  # most tokens used of a block, since the cost of attention is quadratic
BATCH_ENTRIES = 1 << 26  # entries of attention or logits in memory at a time
EIGHTHS = (1, 2, 3, 4, 6)  # distances of two copies in eighths of a block; a passage is one eighth


@dataclass(frozen=True)
class Plan:
    """Positions of the passages in a block of T tokens.

    length : ℓ of a passage. second : start of its second copy, which ends the block.
    distances : from the first copy to the second.
    """

    context: int
    length: int
    second: int
    distances: tuple[int, ...]

    @property
    def half(self) -> int:
        """The distance of `snapshots.pretrain.doubled_distance: half`."""
        return self.distances[EIGHTHS.index(4)]

    @property
    def scores(self) -> list[tuple[str, int]]:
        """Names and distances of the scores, in the order of every array; 0 means no distance."""
        over = ("fixed_distance", "induction", "duplicate_token")
        scores = [("previous_token", 1), ("natural_induction", 0)]
        return scores + [(name, d) for name in over for d in self.distances]


def plan(context: int) -> Plan:
    """The passages of blocks of `context` tokens, at least 16."""
    length = context // 8
    return Plan(context, length, context - length, tuple(context * e // 8 for e in EIGHTHS))


@dataclass
class Blocks:
    """Token ids for the model to read, each (B, T).

    text : held-out text. random, passage : random tokens, and held-out text that ends with a
    passage of another block; neither contains a passage twice. `copied` inserts the first copy.
    """

    text: np.ndarray
    random: np.ndarray
    passage: np.ndarray

    def copied(self, name: str, p: Plan, distance: int) -> np.ndarray:
        """Blocks of `name` whose last passage also occurs `distance` tokens earlier."""
        blocks: np.ndarray = getattr(self, name).copy()
        first = p.second - distance
        blocks[:, first : first + p.length] = blocks[:, p.second :]
        return blocks


def make_blocks(held_out: np.ndarray, p: Plan, end: int | None, seed: int) -> Blocks:
    """The blocks that all scores are measured on.

    Parameters
    ----------
    held_out : (B, context ≥ T), B ≥ 2. end : end-of-text token; random tokens exclude it.
    """
    text = held_out[:, : p.context].astype(np.int64)
    rng = np.random.default_rng(seed)
    known = np.unique(held_out)  # tokens of the vocabulary that do not occur may be untrained
    known = known[known != (-1 if end is None else end)].astype(np.int64)
    again = len(known) < p.context
    random = np.stack([rng.choice(known, p.context, replace=again) for _ in text])
    passage = text.copy()
    passage[:, p.second :] = np.roll(text, 1, 0)[:, : p.length]
    return Blocks(text, random, passage)


def natural_copies(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where an induction head attends in real text, and where it does not, both (B, T, T) bool.

    The first is true at [t, s] if s = j + 1 < t for an earlier copy j of the pair at t, (x_j,
    x_{j+1}) = (x_t, x_{t+1}). The second is true if x_s = x_{t+1}, s < t, and s follows another
    token than x_t. Only t that have both are included.

    Parameters
    ----------
    ids : (B, T).
    """
    T = ids.shape[1]
    same = ids[:, :, None] == ids[:, None, :]
    following = torch.zeros_like(same)
    following[:, :-1] = same[:, 1:]  # x_s = x_{t+1}
    after = torch.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1]  # x_{s−1} = x_t
    following &= torch.ones(T, T, dtype=torch.bool, device=ids.device).tril(-1)
    copies, others = following & after, following & ~after
    both = (copies.any(2) & others.any(2))[:, :, None]
    return copies & both, others & both


def uniform(context: int) -> torch.Tensor:
    """Attention of a head that attends equally to all available positions, (1, 1, T, T)."""
    each = 1 / torch.arange(1, context + 1, dtype=torch.float64)
    return each[:, None].expand(-1, context).tril()[None, None]


def text_scores(
    attention: torch.Tensor, ids: torch.Tensor, p: Plan
) -> dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Sums of the scores on held-out text, by score: value, count, and control.

    Parameters
    ----------
    attention : (B, H, T, T). ids : (B, T).

    Returns
    -------
    value, control : (B, H) sums over positions. count : (B,) of positions.
    """
    A, T = attention, p.context
    scores: dict[tuple[str, int], Any] = {}
    every = torch.full((len(ids),), T - 1, device=ids.device)
    scores["previous_token", 1] = A.diagonal(-1, 2, 3).sum(2), every, None
    for d in p.distances:
        free = ids[:, d:] != ids[:, : T - d]
        # t starts at d: the diagonal's first position, t = d − 1, has no token at t − d
        seen = A.diagonal(-(d - 1), 2, 3)[:, :, 1:]
        scores["fixed_distance", d] = (seen * free[:, None]).sum(2), free.sum(1), None
    copies, others = natural_copies(ids)
    number = copies.sum(2)
    # Weights on the other tokens, which add up to the number of copies at each position.
    at = copies.to(A.dtype)
    share = others * (number / others.sum(2).clamp(min=1))[:, :, None].to(A.dtype)
    value = _sum(A, at)
    mean = _by_distance(A).sum(2) / torch.arange(T, 0, -1, device=ids.device)
    weights = _by_distance((at - share)[:, None]).sum((1, 2))
    control = _sum(A, share) + torch.einsum("bt,bht->bh", weights, mean)
    scores["natural_induction", 0] = value, copies.any(2).sum(1), control
    return scores


def _sum(A: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ_ts A[b, h, t, s] · weights[b, t, s], (B, H)."""
    return torch.einsum("bhts,bts->bh", A, weights)


def _by_distance(A: torch.Tensor) -> torch.Tensor:
    """(B, H, T, T) indexed by [t, s], as [t, t − s]; 0 where there is no such s."""
    T = A.shape[-1]
    back = torch.arange(T, device=A.device)
    s = back[:, None] - back[None, :]
    return A.gather(3, s.clamp(min=0).expand(*A.shape[:2], T, T)) * (s >= 0)


def copy_scores(rows: torch.Tensor, p: Plan, distance: int) -> dict[tuple[str, int], torch.Tensor]:
    """Sums of induction and duplicate_token over the second copy, each (B, H).

    Parameters
    ----------
    rows : (B, H, ℓ−1, T) attention from all positions of the second copy except the last, whose
        next token is unknown.
    """
    first = p.second - distance
    return {
        ("induction", distance): rows.diagonal(first + 1, 2, 3).sum(2),
        ("duplicate_token", distance): rows.diagonal(first, 2, 3).sum(2),
    }


MEASURED = ("value", "control", "gain")
Parts = dict[int, list[torch.Tensor]]  # for each score, (L, B, H) of each batch


@dataclass
class Measures:
    """Sums per block for one snapshot, all float64; S scores in the order of `Plan.scores`.

    value, control : (S, L, H, B), control NaN if a score has none; L and H are 0 without attention
    weights. gain : (2, D, B), on held-out text and on random tokens at each distance, in nats.
    """

    value: np.ndarray
    control: np.ndarray
    gain: np.ndarray


def chances(blocks: Blocks, p: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the scores for uniform attention, and counts of positions, each (S, B)."""
    even = uniform(p.context)
    chance, count = np.zeros((2, len(p.scores), len(blocks.text)))
    for b, row in enumerate(blocks.text):
        ids = torch.from_numpy(row)[None]
        rows = even[:, :, p.second : -1]
        sums = {key: score[:2] for key, score in text_scores(even, ids, p).items()}
        for d in p.distances:
            for key, score in copy_scores(rows, p, d).items():
                sums[key] = score, torch.tensor(p.length - 1)
        for i, key in enumerate(p.scores):
            chance[i, b], count[i, b] = (each.item() for each in sums[key])
    return chance, count


def attends(model: Any) -> bool:
    """Make the model return attention weights; False, with a warning, if it has none."""
    try:
        model.set_attn_implementation("eager")
        device = next(model.parameters()).device
        with torch.no_grad():
            ids = torch.zeros((1, 2), dtype=torch.int64, device=device)
            given = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    except Exception as error:  # an architecture's own code can raise anything
        given, why = None, f" ({' '.join(str(error).split())[:120]})"
    else:
        why = ""
    layers = _weights(given, 2)
    if len({layer.shape[1] for layer in layers}) == 1:
        return True
    if layers:
        why = " of as many heads in each layer"
    kind = type(model).__name__
    print(f"{kind} gives no attention weights{why}: heads are left out", file=sys.stderr)
    return False


def _weights(given: Any, context: int) -> list[torch.Tensor]:
    """The layers of a model's output that have attention weights (B, H, T, T)."""
    square = (context, context)
    return [a for a in given or () if a is not None and a.ndim == 4 and a.shape[-2:] == square]


@torch.no_grad()
def measure_model(model: Any, blocks: Blocks, p: Plan, attention: bool) -> Measures:
    """Compute the sums for one snapshot.

    Parameters
    ----------
    model : in evaluation mode. attention : whether it returns attention weights (`attends`).
    """
    device = next(model.parameters()).device
    order = {key: i for i, key in enumerate(p.scores)}
    values: Parts = defaultdict(list)
    controls: Parts = defaultdict(list)
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    few = {"logits_to_keep": p.length} if keeps else {}

    def run(ids: torch.Tensor, wanted: bool) -> Any:
        return model(input_ids=ids, use_cache=False, output_attentions=wanted, **few)

    def add(sums: Parts, layers: list[dict[tuple[str, int], torch.Tensor]]) -> None:
        for key in layers[0]:
            sums[order[key]].append(torch.stack([layer[key] for layer in layers]))

    def losses(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Mean loss on the second copy without its first token, (B,)."""
        logits = logits[:, -p.length : -1].float()
        right = ids[:, p.second + 1 :]
        loss = cross_entropy(logits.flatten(0, 1), right.flatten(), reduction="none")
        return loss.view(right.shape).double().mean(1)

    def batches(rows: np.ndarray) -> Iterator[torch.Tensor]:
        config = model.config.get_text_config()
        layers = int(config.num_hidden_layers) * int(getattr(config, "num_attention_heads", 1))
        entries = max(layers * p.context * attention, int(config.vocab_size)) * p.context
        step = max(1, min(8, BATCH_ENTRIES // entries))
        for start in range(0, len(rows), step):
            yield torch.from_numpy(rows[start : start + step]).to(device)

    for ids in batches(blocks.text) if attention else ():
        attentions = _weights(run(ids, True).attentions, p.context)
        layers = [text_scores(a.float(), ids, p) for a in attentions]
        add(values, [{key: score[0] for key, score in layer.items()} for layer in layers])
        add(controls, [{k: s[2] for k, s in layer.items() if s[2] is not None} for layer in layers])
    gain = np.zeros((2, len(p.distances), len(blocks.text)))
    for k, name in enumerate(("passage", "random")):
        wanted = attention and name == "random"
        by_distance: list[torch.Tensor] = []
        for d in (0, *p.distances):  # 0: the passage occurs only once
            rows = getattr(blocks, name) if d == 0 else blocks.copied(name, p, d)
            loss = []
            for ids in batches(rows):
                out = run(ids, wanted)
                loss.append(losses(ids, out.logits))
                if not wanted:
                    continue
                attentions = _weights(out.attentions, p.context)
                second = [a[:, :, p.second : -1].float() for a in attentions]
                for at in (d,) if d else p.distances:
                    add(values if d else controls, [copy_scores(a, p, at) for a in second])
            by_distance.append(torch.cat(loss))
        gain[k] = (by_distance[0] - torch.stack(by_distance[1:])).cpu().numpy()
    L, _, H = next(iter(values.values()))[0].shape if values else (0, 0, 0)
    value, control = np.full((2, len(order), L, H, len(blocks.text)), np.nan)
    for sums, array in ((values, value), (controls, control)):
        for i, parts in sums.items():
            array[i] = torch.cat(parts, 1).double().permute(0, 2, 1).cpu()
    return Measures(value, control, gain)


def measure(settings: Settings, snapshots: Path, tokens: Path, sums: Path, table: Path) -> None:
    """Write the scores of all heads, and the copying gains, of every snapshot.

    Parameters
    ----------
    snapshots : folder of step{S} folders. tokens : tokens.h5.
    sums : HDF5; for each block of held-out text, the fields of `Measures`, each with snapshots as
        first axis; attributes steps, scores and score_distances, distances of the gains, half.
    table : CSV of means over positions; its columns are in the declaration.

    Raises
    ------
    InputError : there are fewer than two blocks of held-out text.
    """
    data = Tokens(tokens)
    first, last = data.splits["held_out"]
    if last - first < 2:
        raise InputError(
            "corpus.held_out_blocks: heads are measured on at least 2 blocks; raise it"
        )
    p = plan(min(data.context, MOST_CONTEXT))
    last = min(last, first + settings.section(Induction).blocks)
    held_out = data.take(np.arange(first, last))
    blocks = make_blocks(held_out, p, data.end_of_text, settings.analysis.seed)
    device, steps = devices.choose(settings.device), settings.snapshots.chosen
    dtype = devices.precision(settings.activations.precision, device)
    attention: bool | None = None
    measures = []
    with bar("heads", len(steps), "snapshots") as progress:
        for step in steps:
            remote = settings.snapshots.remote_code
            model = sites.load_model(snapshots / f"step{step}", device, dtype, remote)
            if attention is None:
                attention = attends(model)
            elif attention:
                model.set_attn_implementation("eager")
            measures.append(measure_model(model, blocks, p, attention))
            progress.update()
    arrays = {name: np.stack([getattr(m, name) for m in measures]) for name in MEASURED}
    arrays["chance"], arrays["count"] = chances(blocks, p)
    with whole_hdf5(sums) as file:
        for name, array in arrays.items():
            file[name] = array.astype(np.float32)
        file.attrs["steps"] = steps
        file.attrs["scores"] = [name for name, _ in p.scores]
        file.attrs["score_distances"] = [d for _, d in p.scores]
        file.attrs["distances"] = p.distances
        file.attrs["half"] = p.half
    write_table(table, _table(arrays, steps, p))


def _table(arrays: dict[str, np.ndarray], steps: list[int], p: Plan) -> pd.DataFrame:
    """Means over all positions, one row per snapshot, head and score."""
    value, control, chance, count = (
        arrays[name].sum(-1) for name in ("value", "control", "chance", "count")
    )
    count = np.maximum(count, 1)
    parts = []
    n, _, L, H = value.shape
    index, layer, head = (x.ravel() for x in np.indices((n, L, H)))
    for i, (name, distance) in enumerate(p.scores):
        columns = {
            "snapshot_index": index + 1,
            "step": np.asarray(steps)[index],
            "layer": layer,
            "head": head,
            "score": name,
            "distance": distance,
            "value": value[:, i].ravel() / count[i],
            "chance": chance[i] / count[i],
            "control": control[:, i].ravel() / count[i],
        }
        parts.append(pd.DataFrame(columns))
    table = pd.concat(parts, ignore_index=True)
    table["distance"] = table["distance"].astype("Int64").mask(table["distance"] == 0)
    return table.sort_values(["snapshot_index", "layer", "head"], kind="stable")

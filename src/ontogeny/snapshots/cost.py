"""The cost of pre-training, and of the snapshots' folders."""

from __future__ import annotations

from ontogeny.cost.sizes import Sizes
from ontogeny.cost.terms import Job, Terms, Work, base, job
from ontogeny.snapshots.sizes import SAVE_EVERY, neox_tensors

LARGEST_FILE = 10.5e9  # bytes of a snapshot's largest file; the hub's clients split at 10 GB


def weights(sizes: Sizes) -> int:
    """Bytes of the tensors of a snapshot that is trained here, in float32."""
    return 4 * sizes.model.parameters


def moments(sizes: Sizes) -> int:
    """Bytes of the optimisers' state.

    AdamW has two float32 moments per weight and a step count per tensor; Muon, for each block's
    four matrices, has one moment and no count.
    """
    settings, model = sizes.settings.snapshots.pretrain, sizes.model
    assert settings is not None
    tensors = neox_tensors(model.layers) - settings.tied_embeddings
    size = 8 * model.parameters + 4 * tensors
    if settings.optimizer == "muon":
        size -= 4 * sum(model.matrices_by_block) + 4 * 4 * model.layers
    return size


def pretrain(sizes: Sizes, share: float = 1.0) -> Job:
    """Training of the language model: 3 forward passes per token, and the measures at snapshots.

    Parameters
    ----------
    share : share of the work that one of several jobs does.
    """
    settings, model, context = sizes.settings, sizes.model, sizes.context
    chosen, corpus = settings.snapshots.pretrain, settings.corpus
    assert chosen is not None
    token, tokens = model.flops_per_token(context), chosen.batch_blocks * context
    trained = chosen.steps * tokens * 3 * token
    if chosen.optimizer == "muon":
        # Five times: two products of a block's (d, n) matrix, one of its (d, d) matrix; Σ n = 12 d.
        each = (2 * 2 * 12 + 4 * 2) * float(model.width) ** 3
        trained += chosen.steps * 5 * model.layers * each
    copies = min(settings.analysis.copying_blocks, corpus.held_out_blocks)
    half, near = context // 2, 2 * (context // 2 * 3 // 4)
    measured = corpus.held_out_blocks * context * token
    # Copying passages: three kinds with a whole context, two with 3/4 of one.
    measured += 3 * copies * 2 * half * model.flops_per_token(2 * half)
    measured += 2 * copies * near * model.flops_per_token(near)
    kept = len({0, *settings.snapshots.chosen, chosen.steps})
    values = 1.5 * model.block_matrix_parameters / model.width + 14 * model.width
    predicted = max(32, copies) * context * 36.0 * model.vocabulary  # measuring needs no gradients
    host: Terms = {"tokens": 3.0 * tokens}
    device: Terms = {
        "weights": weights(sizes),
        "gradients": weights(sizes),
        "moments": moments(sizes),
        "batch": max(tokens * (4 * values * model.layers + 16.0 * model.vocabulary), predicted),
    }
    work = Work(
        forward32=share * (trained + kept * measured),
        moved=share * chosen.steps * 40.0 * model.parameters,
        written=share
        * (kept + chosen.steps // SAVE_EVERY)
        * float(weights(sizes) + moments(sizes)),
        read=weights(sizes),
    )
    return job(sizes.gpu, work, host, device)


def folder(sizes: Sizes, kind: str) -> tuple[float, bool]:
    """Most bytes of a snapshot's folder, and whether they include the masks of older files.

    GPT-NeoX and GPT-2 of older transformers store each block's causal mask, one byte per entry.

    Parameters
    ----------
    kind : the configuration's model_type.
    """
    model = sizes.model
    size = float(model.parameters * sizes.file_bytes)
    masks = sizes.settings.snapshots.hub is not None and kind in ("gpt_neox", "gpt2")
    return size + (model.layers * (model.positions or 0) ** 2 if masks else 0), masks


def snapshot(sizes: Sizes, size: float) -> Job:
    """The cost of bringing one snapshot of this many bytes into the experiment."""
    source = sizes.settings.snapshots
    fetched = size if source.hub is not None else 0.0
    work = Work(fetched=fetched, read=size - fetched, written=size, starts=0.5)
    host: Terms = {"Python": 0.3e9}
    if source.pretrain is None:  # pickles, which many are, are rewritten one file at a time
        host = base(False)[0] | {"a snapshot as it loads": 2.0 * min(size, LARGEST_FILE)}
    return Job(work, host)

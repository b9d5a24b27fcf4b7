"""A model's shape, from its configuration alone: its parameters, and the cost of a token.

The model is built without storage (on torch's meta device), which takes well under a second for any
size; `cached` stores the result, so that planning again does not import torch. Of the model that is
trained here, the sizes are known in advance (`of_pretrain`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ontogeny.files import InputError, digest_value, one_line, write_json
from ontogeny.settings import Pretrain


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal language model; tied parameters are counted once.

    width : d of the residual stream. attention_width, key_value_width : heads (key-value heads)
    times the width of a head. positions : most tokens of a context, None if there is no limit.
    parameters : all of them. embedding_parameters : the table of input tokens.
    before_parameters : outside the blocks, used before the first: that table, positions, norms.
    unembedding_parameters : the output matrix if it is not the table of input tokens, else 0.
    parameters_by_block, matrices_by_block : of each block; the latter counts matrices that multiply
    every token (for experts, the share that a token passes through).
    matrices_before, matrices_after : the same outside the blocks, before the first and after the
    last; the latter includes the unembedding, tied or not.
    """

    width: int
    layers: int
    heads: int
    vocabulary: int
    positions: int | None
    attention_width: int
    key_value_width: int
    parameters: int
    embedding_parameters: int
    before_parameters: int
    unembedding_parameters: int
    parameters_by_block: tuple[int, ...]
    matrices_by_block: tuple[int, ...]
    matrices_before: int
    matrices_after: int

    @property
    def block_matrix_parameters(self) -> int:
        """Parameters of a block in matrices that multiply a token; the largest over blocks."""
        return max(self.matrices_by_block)

    def parameters_to(self, layer: int) -> int:
        """Parameters of a model truncated after `layer`: before_parameters + blocks 0…layer."""
        return self.before_parameters + sum(self._to(layer, self.parameters_by_block))

    def flops_per_token(self, context: int, layer: int | None = None) -> float:
        """Forward floating point operations per token of a context, up to the end of `layer`.

        They are 2·(matrices_before + Σ matrices_by_block) + 4·context·attention_width per block
        and, if `layer` is None (the whole model), 2·matrices_after: a multiplication and an
        addition for each weight, and for each pair of positions in the scores and in the mean of
        the values. All context² pairs count, including those that the mask hides, as in
        torch.utils.flop_counter.
        """
        matrices = self._to(layer, self.matrices_by_block)
        after = self.matrices_after if layer is None else 0
        weights = self.matrices_before + sum(matrices) + after
        return 2.0 * weights + 4.0 * context * self.attention_width * len(matrices)

    def _to(self, layer: int | None, by_block: tuple[int, ...]) -> tuple[int, ...]:
        if layer is None:
            return by_block
        if not 0 <= layer < self.layers:
            raise InputError(
                f"activations.layers: layer {layer} does not exist; the model has {self.layers}, "
                f"numbered 0 to {self.layers - 1}"
            )
        return by_block[: layer + 1]


def config_of_pretrain(settings: Pretrain, vocabulary: int, context: int) -> dict[str, Any]:
    """Configuration of the model that is trained here: GPT-NeoX with a sequential residual."""
    return {
        "model_type": "gpt_neox",
        "vocab_size": vocabulary,
        "hidden_size": settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "intermediate_size": 4 * settings.width,
        "max_position_embeddings": context,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": settings.rotary_share,
        },
        "use_parallel_residual": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": settings.tied_embeddings,
        "use_cache": False,
    }


def of_pretrain(settings: Pretrain, vocabulary: int, context: int) -> Shape:
    """The shape of the model that is trained here, without torch or transformers.

    As `of_config` of `config_of_pretrain` finds it: a block has d·3d for queries, keys and values,
    d·d, d·4d and 4d·d, each with biases, and two layer norms.
    """
    d, table = settings.width, vocabulary * settings.width
    block, norm = 12 * d * d + 13 * d, 2 * d
    unembedding = 0 if settings.tied_embeddings else table
    return Shape(
        width=d,
        layers=settings.layers,
        heads=settings.heads,
        vocabulary=vocabulary,
        positions=context,
        attention_width=d,
        key_value_width=d,
        parameters=table + settings.layers * block + norm + unembedding,
        embedding_parameters=table,
        before_parameters=table,
        unembedding_parameters=unembedding,
        parameters_by_block=(block,) * settings.layers,
        matrices_by_block=(12 * d * d,) * settings.layers,
        matrices_before=0,
        matrices_after=table,
    )


def cached(config: dict[str, Any], folder: Path) -> Shape:
    """The shape of a configuration, stored as JSON under `folder` by the configuration's digest."""
    path = folder / f"{digest_value(config)}.json"
    try:
        kept: Any = json.loads(path.read_text(encoding="utf-8"))
        for name in ("parameters_by_block", "matrices_by_block"):
            kept[name] = tuple(kept[name])
        return Shape(**kept)
    except (OSError, ValueError, TypeError, KeyError):
        shape = of_config(config)  # not stored yet, or by another version
    write_json(path, asdict(shape))
    return shape


def of_config(config: dict[str, Any]) -> Shape:
    """Measure the model that a configuration (a config.json) describes, without its weights.

    Raises InputError if transformers does not know the architecture, or has no causal language
    model for it.
    """
    import torch
    from torch._subclasses import FakeTensorMode
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    from ontogeny.snapshots import sites

    kind = config.get("model_type")
    if str(kind) not in CONFIG_MAPPING:
        raise InputError(
            f"snapshots: transformers does not know the architecture '{kind}', and its size is "
            "not known without the code in its repository; choose another model"
        )
    given = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        known = AutoConfig.for_model(**given)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(known, dtype=torch.float32)
    except Exception as error:  # validation and the code of each model can raise anything
        raise InputError(
            "snapshots: this configuration does not give a causal language model of the "
            f"architecture '{kind}'; choose another model, or correct its config.json "
            f"({one_line(error, 200)})"
        ) from None
    model.eval()
    text = known.get_text_config()
    blocks = sites.blocks(model)
    if not len(blocks):
        raise InputError("snapshots: config.json describes a model without layers; correct it")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        ids = torch.zeros((1, 1), dtype=torch.long, device="meta")
        later = {name: model.get_submodule(name) for name in sites.unused(model, ids, -1)}
    in_later = {module for top in later.values() for module in top.modules()}
    in_blocks = set(blocks.modules())
    earlier = [m for m in model.modules() if m not in in_later and m not in in_blocks]
    before = {w for m in earlier for w in m.parameters(recurse=False)}
    embedding, unembedding = model.get_input_embeddings().weight, model.get_output_embeddings()
    # Besides blocks and unembedding, a model may have an image encoder, which text does not use.
    home = next(n for n, m in model.named_modules() if m is blocks).rpartition(".")[0]
    after = {m for n, top in later.items() if n.rpartition(".")[0] == home for m in top.modules()}
    after |= set() if unembedding is None else {unembedding}
    tied = unembedding is None or unembedding.weight is embedding
    per_token = getattr(text, "num_experts_per_tok", None)

    def matrices(modules: Iterable[Any]) -> int:
        """Number of weights that multiply each token; lookup tables do not count."""
        total = 0
        for module in modules:
            if isinstance(module, torch.nn.Embedding):
                continue
            for w in module.parameters(recurse=False):
                experts = w.ndim == 3 and per_token and not isinstance(module, torch.nn.Conv1d)
                if w.ndim >= 2:
                    total += w.numel() * per_token // w.shape[0] if experts else w.numel()
        return total

    heads = getattr(text, "num_attention_heads", 0)  # a state space model has no heads
    head = getattr(text, "head_dim", None) or text.hidden_size // max(1, heads)
    key_value_heads = getattr(text, "num_key_value_heads", None) or heads
    return Shape(
        width=text.hidden_size,
        layers=len(blocks),
        heads=heads,
        vocabulary=text.vocab_size,
        positions=getattr(text, "max_position_embeddings", None),
        attention_width=heads * head,
        key_value_width=key_value_heads * head,
        parameters=sum(w.numel() for w in model.parameters()),
        embedding_parameters=embedding.numel(),
        before_parameters=sum(w.numel() for w in before),
        unembedding_parameters=0 if tied else unembedding.weight.numel(),
        parameters_by_block=tuple(sum(w.numel() for w in b.parameters()) for b in blocks),
        matrices_by_block=tuple(matrices(block.modules()) for block in blocks),
        matrices_before=matrices(earlier),
        matrices_after=matrices(after),
    )

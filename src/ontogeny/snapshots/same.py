"""Whether snapshots are one model at several steps: configurations, tokenizers, weights.

Results of a run that mixes two models, or has one checkpoint under two steps, are meaningless.
All of this is found from small files and headers, before any work.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ontogeny.files import InputError, digest_file, digest_value
from ontogeny.snapshots import headers, naming, weights

# Keys of a config.json that do not affect the forward pass.
IDLE = {
    "_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "use_cache",
    "architectures", "task_specific_params", "_attn_implementation", "attn_implementation",
    "initializer_range", "id2label", "label2id", "auto_map", "name_or_path", "pretraining_tp",
}  # fmt: skip
IDLE_ENDINGS = ("dropout", "_pdrop", "_token_id", "_router_logits", "_coef", "output_attentions",
                "output_hidden_states", "return_dict")  # fmt: skip
# Keys that may change during a training, for example for longer contexts.
CHANGING = {"rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings",
            "sliding_window", "model_max_length"}  # fmt: skip
SAMPLES = 8  # tensors of which a piece is compared before two checkpoints are read completely
PIECE = 4096  # bytes
CHUNK = 1 << 24


def steps_in_words(steps: Sequence[int]) -> str:
    """Steps as part of a sentence: "step 5", "steps 5 and 20", "steps 5, 20, … and 100 (12)"."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    if len(steps) > 6:
        return f"steps {steps[0]}, {steps[1]}, … and {steps[-1]} ({len(steps)} of them)"
    return f"steps {', '.join(map(str, steps[:-1]))} and {steps[-1]}"


# Configurations


def config_lines(configs: Mapping[int, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Differences between the snapshots' configurations, by step: faults, and doubts.

    Each is compared with the majority of the snapshots or, in a tie, with the earlier half.
    """
    plain = {step: _computing(config) for step, config in configs.items()}
    if len({digest_value(config) for config in plain.values()}) > 1:
        plain = {step: _computing(_completed(config)) for step, config in configs.items()}
    groups = _groups({step: digest_value(config) for step, config in plain.items()})
    most, *others = groups
    faults: list[str] = []
    doubts: list[str] = []
    for steps in others:
        one, usual = plain[steps[0]], plain[most[0]]
        keys = sorted(k for k in one.keys() | usual.keys() if one.get(k) != usual.get(k))
        said = ", ".join(f"{k} {_shown(one.get(k))}, not {_shown(usual.get(k))}" for k in keys[:3])
        also = f" and {len(keys) - 3} more keys" if len(keys) > 3 else ""
        where = f"snapshots.steps: config.json of {steps_in_words(steps)} has {said}{also}"
        held = f"as {steps_in_words(most)}" if len(most) < 3 else "as the others"
        if set(keys) <= CHANGING:
            doubts.append(f"{where}, {held}; their activations differ for that reason too")
        else:
            faults.append(f"{where}, {held}; leave them out: all snapshots must be one model")
    return faults, doubts


def _computing(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that affect the forward pass."""
    return {
        key: value
        for key, value in config.items()
        if key not in IDLE and not key.endswith(IDLE_ENDINGS)
    }


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with its defaults, which another version of transformers may have omitted."""
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers.utils import logging

    if str(config.get("model_type")) not in CONFIG_MAPPING:
        return config
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # its messages about special tokens do not matter here
    try:
        return AutoConfig.for_model(**config).to_dict()
    except Exception:  # validation failed; the fault is reported where the shape is computed
        return config
    finally:
        logging.set_verbosity(loud)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _groups(keys: Mapping[int, Any]) -> list[list[int]]:
    """Groups of steps with equal keys, the largest group first."""
    by_key: dict[Any, list[int]] = {}
    for step, key in keys.items():
        by_key.setdefault(key, []).append(step)
    return sorted(by_key.values(), key=len, reverse=True)


# Tokenizers


def tokenizer_lines(files: Mapping[int, Path]) -> tuple[list[str], list[str]]:
    """Differences between the snapshots' tokenizer files, by step: faults, and doubts.

    Parameters
    ----------
    files : for each step tokenizer.json, vocab.json, or another file, all of the same name.
    """
    groups = _groups({step: digest_file(path) for step, path in files.items()})
    most, *others = groups or [[]]
    faults: list[str] = []
    doubts: list[str] = []
    for steps in others:
        name = files[steps[0]].name
        where = f"snapshots.steps: {name} of {steps_in_words(steps)}"
        mend = "leave them out: ids must mean the same text for all snapshots"
        one, usual = vocabulary(files[steps[0]]), vocabulary(files[most[0]])
        if one is None or usual is None:
            faults.append(f"{where} differs from that of step {most[0]}; {mend}")
            continue
        moved = [token for token, number in one.items() if usual.get(token, number) != number]
        by_id = {number: token for token, number in usual.items()}
        renamed = [t for t, number in one.items() if t not in usual and number in by_id]
        if moved or renamed:
            token = min(moved or renamed, key=lambda t: one[t])
            here, there = one[token], usual.get(token)
            said = f"{token!r} the id {here}, but that of step {most[0]} "
            said += f"{there}" if there is not None else f"has {by_id[here]!r} there"
            faults.append(f"{where} gives {said}; {mend}")
        elif one.keys() != usual.keys():
            few = sorted(one.keys() ^ usual.keys(), key=lambda t: one.get(t, usual.get(t, 0)))
            which = "more" if len(one) > len(usual) else "fewer"
            doubts.append(
                f"{where} has {len(few)} tokens {which} than that of step {most[0]} "
                f"({', '.join(map(repr, few[:3]))}); snapshots that lack one were never trained on "
                "it"
            )
        else:
            doubts.append(
                f"{where} has the same tokens as that of step {most[0]} but may divide text "
                "differently; the text is tokenised once, for all snapshots"
            )
    return faults, doubts


def vocabulary(path: Path) -> dict[str, int] | None:
    """The id of each token of a tokenizer.json or vocab.json; None if it is not known."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "vocab.json":
            return {str(token): int(number) for token, number in given.items()}
        entries = given["model"]["vocab"]
        if isinstance(entries, list):  # Unigram: pieces and scores, in the order of their ids
            entries = {piece: number for number, (piece, _) in enumerate(entries)}
        tokens = {str(token): int(number) for token, number in entries.items()}
        return tokens | {str(t["content"]): int(t["id"]) for t in given.get("added_tokens") or []}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


# Weights


@dataclass(frozen=True)
class Content:
    """The bytes of a checkpoint's weights.

    about : digest of their names, types and shapes. pieces : of each tensor, (file, first, end).
    shapes : of the tensors by name, if there is a header.
    """

    about: str
    pieces: tuple[tuple[Path, int, int], ...]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def content(found: weights.Found) -> Content:
    """A checkpoint's tensors in the order of their names, in whichever files they are.

    For pickled weights and for adapters, it has the files themselves. Raises InputError if one is
    damaged.
    """
    paths = list(found.files)
    if found.adapter is not None:
        paths = [path for path in found.adapter.iterdir() if path.name.startswith("adapter_model")]
    if any(path.suffix in weights.PICKLED for path in paths) or found.adapter is not None:
        pieces = tuple((path, 0, path.stat().st_size) for path in sorted(paths))
        return Content(digest_value([size for _, _, size in pieces]), pieces)
    tensors = headers.tensors(paths)
    shapes = {naming.inside(name): tensor.shape for name, tensor in tensors.items()}
    about = [[naming.inside(n), t.dtype, list(t.shape)] for n, t in tensors.items()]
    pieces = tuple((t.file, t.start, t.stop) for t in tensors.values())
    return Content(digest_value(about), pieces, shapes)


def equal_weights(contents: Mapping[int, Content]) -> list[list[int]]:
    """Groups of steps whose weights are equal bit for bit, each ascending.

    Shapes are compared first, then pieces of the largest tensors; only checkpoints that agree in
    these are read completely.
    """
    alike: dict[Any, list[int]] = {}
    for step, one in contents.items():
        alike.setdefault((one.about, _sample(one)), []).append(step)
    equal: list[list[int]] = []
    for steps in alike.values():
        left = list(steps)
        while len(left) > 1:
            first, rest = left[0], left[1:]
            same = [step for step in rest if _same(contents[first], contents[step])]
            if same:
                equal.append([first, *same])
            left = [step for step in rest if step not in same]
    return sorted(equal)


def _sample(one: Content) -> bytes:
    """Pieces from the middle of the largest tensors, which training changes first."""
    largest = sorted(one.pieces, key=lambda piece: piece[1] - piece[2])[:SAMPLES]
    read = []
    for path, start, stop in largest:
        with path.open("rb") as file:
            file.seek(max(start, (start + stop - PIECE) // 2))
            read.append(file.read(min(PIECE, stop - start)))
    return b"".join(read)


def _same(one: Content, other: Content) -> bool:
    """Whether two checkpoints with the same shapes agree in all bytes."""
    for (path, start, stop), (against, first, _) in zip(one.pieces, other.pieces, strict=True):
        if path.samefile(against) and start == first:
            continue
        with path.open("rb") as a, against.open("rb") as b:
            a.seek(start)
            b.seek(first)
            left = stop - start
            while left:
                size = min(left, CHUNK)
                if a.read(size) != b.read(size):
                    return False
                left -= size
    return True


def equal_lines(groups: Iterable[Sequence[int]], where: str) -> Iterator[str]:
    """A sentence for each two steps with the same weights, or a single one for many steps.

    Parameters
    ----------
    where : for example the pattern of the folders.
    """
    mend = (
        "one of them is not what its name says, or nothing was learned between them: leave one out"
    )
    for steps in groups:
        if len(steps) > 4:
            said = ", ".join(map(str, steps))
            yield f"snapshots.steps: of {where} steps {said} have the same weights; {mend}"
            continue
        for step in steps[1:]:
            both = steps_in_words([steps[0], step])
            yield f"snapshots.steps: of {where} {both} have the same weights; {mend}"


def shape_faults(contents: Mapping[int, Content]) -> list[str]:
    """A line for each step that has a tensor with another shape than at most steps."""
    lines: list[str] = []
    told: set[int] = set()
    for name in {name: None for one in contents.values() for name in one.shapes}:
        having = {step: one.shapes[name] for step, one in contents.items() if name in one.shapes}
        most, *others = _groups(having)
        for steps in others:
            if told.issuperset(steps):
                continue
            told.update(steps)
            lines.append(
                f"snapshots.steps: {name} of {steps_in_words(steps)} has the shape "
                f"{list(having[steps[0]])}, that of {steps_in_words(most)} "
                f"{list(having[most[0]])}; leave them out: all snapshots must be one model"
            )
    return lines


def contents(founds: Mapping[int, weights.Found]) -> dict[int, Content]:
    """The `content` of each checkpoint, without damaged ones."""
    made = {}
    for step, found in founds.items():
        try:
            made[step] = content(found)
        except (InputError, OSError):
            continue
    return made

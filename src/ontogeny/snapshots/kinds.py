"""Folders that are not snapshots but can be made into one: shards, adapters and others."""

from __future__ import annotations

from collections.abc import Collection

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def is_adapter(names: Collection[str]) -> bool:
    """Whether a folder with these names contains a PEFT adapter."""
    return ADAPTER in names or any(name in names for name in ADAPTER_WEIGHTS)


def otherwise(where: str, names: Collection[str]) -> str | None:
    """Which other kind of weights a folder has, and how to make a snapshot; None if it has none.

    Parameters
    ----------
    where : the folder, as it is written in commands.
    names : of its files and folders, and of the files in these folders as FOLDER/FILE.
    """
    if is_adapter(names):
        return (
            "a PEFT adapter; merge it into its base model first (merge_and_unload of peft), or "
            "name the base model's folder in snapshots.local.base"
        )
    deepspeed = [n for n in names if n.endswith(("_optim_states.pt", "_model_states.pt"))]
    if deepspeed or "zero_to_fp32.py" in names:
        return (
            "shards of DeepSpeed; merge them with `python "
            f"{where}/zero_to_fp32.py {where} {where} --safe_serialization`"
        )
    sharded = sorted(n for n in names if n.endswith(".distcp"))
    if sharded:
        inner, _, _ = sharded[0].rpartition("/")
        if inner:
            return (
                "shards of FSDP; merge them with `accelerate merge-weights "
                f"{where}/{inner} {where}`"
            )
        return (
            "shards of torch.distributed.checkpoint; merge them with `python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {where} "
            f"{where}/pytorch_model.bin`"
        )
    for ending, what, mend in OTHERS:
        if any(name.endswith(ending) for name in names):
            return f"{what}; {mend}"
    return None


SAVE = "save the model with save_pretrained of transformers"
OTHERS = (
    ("model_optim_rng.pt", "a checkpoint of Megatron", "convert it to Hugging Face format first"),
    (".gguf", "a quantised GGUF file", "name the model that it was made from"),
    ("consolidated.00.pth", "weights in Meta's format", "convert them to Hugging Face format"),
    ("flax_model.msgpack", "only Flax weights", SAVE),
    ("tf_model.h5", "only TensorFlow weights", SAVE),
)

"""A run of one's own to look into: a small model, trained offline by the Hugging Face Trainer.

    python experiments/local_trainer.py
    snakemake --cores 2 --configfile experiments/local-trainer.yaml

The model reads Python's standard library, a document a module, but for a quarter of the modules,
which the experiment looks at. Checkpoints are kept at twelve steps, ever further apart, the first
of the initial model. Nothing here knows Ontogeny, which needs such folders and a text alone.
"""

import argparse
import gzip
import json
import random
import sysconfig
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

RUN = Path("results/local-trainer-run")
STEPS = [0, 2, 4, 8, 16, 30, 50, 90, 150, 230, 330, 450]
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
VOCABULARY = 1024
END = "<|endoftext|>"
OTHER_FOLDERS = {"encodings", "idle_test", "lib2to3", "site-packages", "test", "tests"}


def main() -> None:
    """Write the text, train the tokenizer and the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    option = parser.add_argument
    option("--architecture", default="gpt2", help="one that transformers knows: gpt2, llama, ...")
    option("--output", type=Path, default=RUN, help="folder of the checkpoints")
    option(
        "--text",
        type=Path,
        default=RUN / "text",
        help="folder of the text, made if it is not there",
    )
    option("--steps", type=int, nargs="+", default=STEPS, help="steps of the checkpoints")
    options = parser.parse_args()
    if any(options.output.glob("checkpoint-*")):
        parser.error(f"{options.output} holds checkpoints; remove it or name another --output")

    set_seed(0)
    documents = modules()
    count = len(documents) // 4
    kept_back, trained_on = documents[:count], documents[count:]
    if not options.text.exists():
        write(kept_back, options.text / "kept-back.jsonl.gz")
        write(trained_on, options.text / "trained-on.jsonl.gz")

    tokenizer = train_tokenizer(trained_on)
    end = tokenizer.eos_token_id
    config = AutoConfig.for_model(
        options.architecture, **SIZES, vocab_size=VOCABULARY, bos_token_id=end, eos_token_id=end
    )
    trainer = Trainer(
        model=AutoModelForCausalLM.from_config(config),
        args=TrainingArguments(
            output_dir=str(options.output),
            max_steps=options.steps[-1],
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            warmup_steps=20,
            lr_scheduler_type="cosine",
            logging_steps=50,
            save_strategy="no",  # Keep chooses the steps; save_steps=50 would do as well
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=blocks(trained_on, tokenizer, SIZES["max_position_embeddings"]),
        data_collator=default_data_collator,
        processing_class=tokenizer,  # goes into every checkpoint
        callbacks=[Keep(options.steps)],
    )
    if 0 in options.steps:
        trainer.save_model(str(options.output / "checkpoint-0"))
    trainer.train()


class Keep(TrainerCallback):
    """Asks the Trainer for a checkpoint after each of the steps."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        control.should_save = state.global_step in self.steps


def modules() -> list[str]:
    """Sources of the standard library's modules, shuffled."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path.relative_to(library) for path in library.rglob("*.py"))
    paths = [path for path in paths if OTHER_FOLDERS.isdisjoint(path.parts)]
    documents = [(library / path).read_text(encoding="utf-8") for path in paths]
    random.shuffle(documents)
    return documents


def write(documents: list[str], path: Path) -> None:
    """JSON lines with a column `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"text": document}) + "\n")


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; its first entry ends a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)


def blocks(
    documents: list[str], tokenizer: PreTrainedTokenizerFast, length: int
) -> list[dict[str, torch.Tensor]]:
    """The documents' tokens, an end-of-text token after each, in blocks of one length."""
    ids = tokenizer([document + END for document in documents])["input_ids"]
    joined = torch.tensor([i for document in ids for i in document])
    whole = joined[: len(joined) // length * length].view(-1, length)
    return [{"input_ids": block, "labels": block} for block in whole]


if __name__ == "__main__":
    main()

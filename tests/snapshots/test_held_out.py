"""The first look at a snapshot: its loss on a little text, and ids that it has no row for."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from runs import Run
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from ontogeny import doubts
from ontogeny.analyses.contexts import lens
from ontogeny.corpus.build import Tokens
from ontogeny.files import InputError
from ontogeny.snapshots import held_out
from ontogeny.snapshots.sizes import loss_blocks


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A small experiment as far as its activations, of several streams."""
    made = Run(tmp_path_factory.mktemp("run"), {
        "activations.streams": ["residual", "mlp_out"], "crosscoders.topk.dead_after_rows": 1000,
    })  # fmt: skip
    made.stages("corpus", "pretrain", "extract", "losses")
    return made


def test_extraction_writes_the_loss_of_the_whole_model(run) -> None:
    """Though the rows are of a model that ends after the last layer that is read."""
    text = run.map.tokens()
    first, _ = text.splits["held_out"]
    blocks = torch.from_numpy(text.blocks[first : first + 8].astype("int64"))
    table = run.map.table("losses")
    assert table["step"].tolist() == run.map.steps
    for step, loss in zip(table["step"], table["loss"], strict=True):
        model = AutoModelForCausalLM.from_pretrained(run.map.path("snapshot", step=step))
        with torch.no_grad():
            logits = model(input_ids=blocks).logits[:, :-1]
        wanted = cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())
        assert loss == pytest.approx(float(wanted), abs=1e-4)
    assert table["loss"].iloc[0] == pytest.approx(math.log(300), abs=0.2)
    assert not table["out_of_place"].any()


def test_few_blocks_are_read() -> None:
    assert [loss_blocks(128, context) for context in (32, 256, 1024, 8192)] == [8, 8, 4, 1]
    assert loss_blocks(2, 256) == 2


def test_an_id_that_the_model_lacks_is_named_with_its_place(run) -> None:
    """Where a tokenizer knows more ids than the model has rows, the text decides."""
    text = Tokens(run.map.path("tokens"))
    model = AutoModelForCausalLM.from_pretrained(run.map.path("snapshot", step=0))
    highest = int(text.blocks.max())
    model.resize_token_embeddings(highest + 1)
    held_out.check_ids(model, text, 0)
    ids = torch.from_numpy(text.blocks[:2].astype("int64"))
    short = lens.unembedding(model, text.vocabulary, ids)
    assert len(short.matrix) == highest + 1 < text.vocabulary + 1
    model.resize_token_embeddings(highest)
    with pytest.raises(InputError) as raised:
        held_out.check_ids(model, text, 3)
    block, place = next(zip(*(text.blocks == highest).nonzero(), strict=True))
    said = str(raised.value)
    assert said.startswith(f"{text.path}: block {block} (")
    assert (
        f"token {place} is the id {highest}, but the embedding of step 3 has only {highest} rows"
        in said
    )


def test_the_loss_is_json(run) -> None:
    path: Path = run.map.path("held_out_loss", step=1)
    about = json.loads(path.read_text())
    assert about.keys() == {"step", "loss"}
    assert about["step"] == 1


def test_what_is_found_is_a_doubt_of_the_summary(run) -> None:
    """Equal weights and a loss out of place; nothing of a sound run."""
    assert doubts.every(run.map) == []
    files = [run.map.path("snapshot", step=step) / "model.safetensors" for step in (1, 3)]
    body, table = files[1].read_bytes(), run.map.table("losses")
    try:
        files[1].unlink()  # a link to the training's own
        shutil.copyfile(files[0], files[1])
        table.assign(out_of_place=table["step"] == 3).to_csv(run.map.path("losses"), index=False)
        equal, apart = doubts.every(run.map)
    finally:
        files[1].write_bytes(body)
        table.to_csv(run.map.path("losses"), index=False)
    assert equal.startswith(
        "snapshots.steps: of the snapshots steps 1 and 3 have the same weights; "
    )
    assert apart.startswith("snapshots: the held-out loss of step 3, ")

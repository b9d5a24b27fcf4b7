"""How fast activations are extracted, written and read, against what bounds each.

    python -m benchmarks.extraction                    (5 minutes on 2 cores; needs `make figures`)

Of each model, one thread, float32, the residual stream of a middle layer, the same blocks of real
tokens in every path; paths alternate, and a ratio is the median over pairs of neighbours:

    hidden states   the full model with output_hidden_states=True, that layer's kept
    bare            a model with no more than the blocks up to that layer, forward and no more
    read            ours: hooks, the pass stopped after the layer, the stored type
    window          ours, up to a window of shuffled rows in memory
    written         ours, those rows in HDF5 with checksums and positions
    plain file      reading: the bytes of the rows from a file that holds nothing else
    reader          reading: ours, rows in pieces, checksums held

Models that are not trained here have random weights: speed does not know. Writes
benchmarks/results/extraction.json and the page's part.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import torch

from ontogeny import devices, settings
from ontogeny.activations import extract, order, store
from ontogeny.activations.sizes import CHUNK_BYTES
from ontogeny.corpus.build import Tokens
from ontogeny.files import write_json
from ontogeny.progress import bar
from ontogeny.snapshots import presets

ROWS = Path(__file__).parent / "results" / "extraction.json"
REPEATS = 5
READS = 15
PIECE = 4096
CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "default": {"layer": 0, "blocks": 640, "context": 256},
    "EleutherAI/pythia-14m": {"layer": 3, "blocks": 32, "context": 512},
    "EleutherAI/pythia-70m": {"layer": 3, "blocks": 8, "context": 512},
    "EleutherAI/pythia-160m": {"layer": 6, "blocks": 4, "context": 512},
}


def save_model(name: str, folder: Path) -> None:
    """A snapshot of the architecture: the default experiment's last, or one of random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if name == "default":
        last = settings.load("config.yaml").snapshots.chosen[-1]
        source = Path(f"results/default/snapshots/step{last}")
        if not source.exists():
            raise click.ClickException(f"{source} is missing; run `make figures` first")
        folder.symlink_to(source.resolve())
        return
    known = presets.architecture(name)
    assert known is not None, f"{name} is in presets.yaml"
    torch.manual_seed(0)
    config = AutoConfig.for_model(**known)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def own_settings(layer: int, blocks: int, context: int) -> settings.Settings:
    """An experiment that reads one place, for what `extract` asks of the settings."""
    return settings.load(
        {
            "name": "extraction",
            "corpus": {"context": context, "train_blocks": blocks},
            "snapshots": {"steps": [0], "local": {"folders": "{step}"}},
            "activations": {"layers": [layer]},
            "crosscoders": {"one": {"inputs": {"layers": [layer]}, "features": 1, "steps": 1,
                                    "k": 1, "aux_features": 0, "batch_rows": 1}},
            "primary": "one",
        }
    )  # fmt: skip


def tokens_file(path: Path, vocabulary: int, blocks: int, context: int) -> Tokens:
    """The first training tokens of the default experiment in blocks of another length."""
    real = Tokens("results/default/corpus/tokens.h5")
    flat = real.take(np.arange(real.splits["train"][0], real.splits["pretrain"][1])).ravel()
    ids = flat[: blocks * context].reshape(blocks, context) % vocabulary
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", data=ids, chunks=(min(64, blocks), context))
        facts = {"held_out": (0, 0), "train": (0, blocks), "pretrain": (blocks, blocks)}
        facts |= {"end_of_text": real.end_of_text, "vocabulary": vocabulary}
        for key, value in (facts | {"tokenizer": "", "corpus": "", "digest": "x"}).items():
            file.attrs[key] = value
    return Tokens(path)


def timed(
    paths: dict[str, Callable[[], object]], repeats: int, gone: list[str] | None = None
) -> dict[str, list[float]]:
    """Seconds of each path, the paths in turn, after one round that does not count.

    Parameters
    ----------
    gone : files to drop from the system's cache before each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(repeats + 1):
        for name, run in paths.items():
            for file in gone or []:
                forget(file)
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over rounds of one path's seconds by another's."""
    pairs = zip(seconds[slow], seconds[fast], strict=True)
    return statistics.median(a / b for a, b in pairs)


def measure(name: str, layer: int, blocks: int, context: int) -> dict[str, Any]:
    """A model's row."""
    from transformers import AutoModel, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_model(name, folder / "model")
        s = own_settings(layer, blocks, context)
        full = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
        data = tokens_file(folder / "tokens.h5", full.config.vocab_size, blocks, context)
        bare = AutoModel.from_pretrained(
            folder / "model", dtype=torch.float32, num_hidden_layers=layer + 1
        ).eval()
        ours = extract.Snapshot(s, folder / "model", 0, CPU)
        rows = order.Order(data, "train", s.activations)
        batches = [data.take(chosen) for chosen in order.batches(rows.windows[0], context)]
        ids = [torch.from_numpy(batch.astype(np.int64)) for batch in batches]

        def hidden() -> None:
            for batch in ids:
                found = full(input_ids=batch, output_hidden_states=True, use_cache=False)
                found.hidden_states[layer + 1].to(torch.float16)

        def bare_forward() -> None:
            for batch in ids:
                bare(input_ids=batch, use_cache=False)

        def read() -> None:
            for batch in batches:
                ours.read(batch)

        with bar("extraction", 1, "tokens", every=1e9) as silent:

            def window() -> None:
                extract._window(ours, rows, 0, s.activations, silent)

            def written() -> None:
                with h5py.File(folder / "rows.h5", "w") as file:
                    files = dict.fromkeys(ours.wanted, file)
                    extract._write_rows(ours, rows, range(1), s.activations, files, "", silent)

            with torch.no_grad():
                seconds = timed(
                    {
                        "hidden states": hidden,
                        "bare": bare_forward,
                        "read": read,
                        "window": window,
                        "written": written,
                    },
                    REPEATS,
                )
        count = blocks * context
        return {
            "model": name,
            "layer": layer,
            "layers": full.config.num_hidden_layers,
            "width": ours.width,
            "tokens": count,
            "tokens_per_second": {k: count / statistics.median(v) for k, v in seconds.items()},
            "over_hidden_states": ratio(seconds, "hidden states", "read"),
            "of_bare": ratio(seconds, "bare", "read"),
            "writing_costs": ratio(seconds, "written", "window") - 1,
        }


def forget(path: str | Path) -> None:
    """Drop a file from the system's cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_reading() -> dict[str, Any]:
    """Reading one snapshot's rows of the default experiment, from disk and from the cache.

    Both files are written anew, in pieces of a chunk as extraction does, and are open already: how
    the cache holds a file depends on how it was written.
    """
    last = settings.load("config.yaml").snapshots.chosen[-1]
    source = f"results/default/activations/residual.0/step{last}.rows0.h5"
    kept = store.Reader(source, "activations")
    rows, width = kept.shape
    values = kept.read(0, rows)
    starts = range(0, rows, PIECE)
    chunk = CHUNK_BYTES // values[0].nbytes
    found: dict[str, Any] = {"bytes": values.nbytes}
    with tempfile.TemporaryDirectory(dir="results") as made:
        with open(f"{made}/plain", "wb", buffering=0) as written:
            for start in range(0, rows, chunk):
                written.write(values[start : start + chunk].data.cast("B"))
        with h5py.File(f"{made}/rows.h5", "w") as file:
            writer = store.Writer(file, "activations", rows, width, str(values.dtype))
            writer.write(values)
        reader = store.Reader(f"{made}/rows.h5", "activations")
        with open(f"{made}/plain", "rb", buffering=0) as plain, h5py.File(reader.path) as file:

            def from_plain() -> None:
                plain.seek(0)
                for start in starts:
                    piece = np.empty((min(PIECE, rows - start), width), values.dtype)
                    plain.readinto(piece.data.cast("B"))

            def by_reader() -> None:
                for start in starts:
                    reader.read(start, min(start + PIECE, rows))

            def by_h5py() -> None:
                for start in starts:
                    file["activations"][start : start + PIECE]

            paths = {"plain file": from_plain, "reader": by_reader, "h5py": by_h5py}
            for where in ("cache", "disk"):
                gone = [f"{made}/plain", f"{made}/rows.h5"] if where == "disk" else []
                seconds = timed(paths, READS, gone)
                rates = {k: values.nbytes / statistics.median(v) for k, v in seconds.items()}
                share = ratio(seconds, "plain file", "reader")
                found[where] = {"bytes_per_second": rates, "of_plain_file": share}
    return found


def main() -> None:
    """Measure every model and the reading, and write the page's part."""
    from benchmarks import page

    torch.set_num_threads(1)
    devices.keep_memory()
    found: dict[str, Any] = {"models": [], "reading": measure_reading()}
    click.echo(json.dumps(found["reading"]))
    for name, sizes in MODELS.items():
        found["models"].append(measure(name, **sizes))
        click.echo(json.dumps(found["models"][-1]))
    found["torch"] = torch.__version__
    write_json(ROWS, found)
    page.write_extraction(found)


if __name__ == "__main__":
    main()

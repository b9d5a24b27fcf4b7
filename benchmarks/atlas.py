"""How large an atlas is, and how long it takes to show: bytes, and seconds in Chromium from disk.

    python -m benchmarks.atlas                         (10 minutes)

Synthetic features of the default experiment's sizes (32 snapshots, two seeds, 23 contexts of 41
tokens of a vocabulary of 50,000, a lens at six sites, three tasks) go through the same writer as an
experiment's, and the site is opened from disk with an empty cache, in turn:

    first view     the start, until it is drawn
    lives          the range chart of all features, whose curves are read and drawn
    table          the first page of it, sorted by density
    search         until the table shows what a word is found in, the first time
    feature        a feature's page, whose files have not been read before
    next           the one beside it, in the same files

Seconds are those of the browser's own clock from the start of the navigation, or from the key that
is pressed; medians over repeats. Writes benchmarks/results/atlas.json.
"""

from __future__ import annotations

import platform
import shutil
import time
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pandas as pd
import torch

from ontogeny.analyses.contexts.settings import Contexts
from ontogeny.analyses.kinds.measure import KINDS
from ontogeny.atlas import build
from ontogeny.atlas.gather import FORMAT, Contents
from ontogeny.features import contexts
from ontogeny.features.described import CLASSES, UNTESTED
from ontogeny.figures.style import COLOURS
from ontogeny.files import write_json

WORK = Path("results/benchmarks/atlas")
OUTPUT = Path(__file__).parent / "results" / "atlas.json"
SIZES = (10_000, 100_000)
REPEATS = 7
STEPS = [0, *(2**i for i in range(10)), *range(1000, 22_000, 1000)]
TASKS = ("agreement", "induction", "copying")
VOCABULARY = 50_000
WIDTH = 8  # of the decoders, whose own entries are not written
LIT = 3  # tokens of a context that are active, in the mean
CHROMIUM = "/usr/bin/chromium"
# The browser's clock once a page was shown so often, and drawn.
SHOWN = """(count) => new Promise((done) => {
    const look = () => requestAnimationFrame(() =>
        Number(document.body?.dataset.ready) >= count ? done(performance.now()) : look());
    look();
})"""
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"


def words(count: int, rng: np.random.Generator) -> list[bytes]:
    """Made-up tokens, most with a space before."""
    share = 1 / np.arange(1, len(LETTERS) + 1)
    sizes = rng.integers(2, 9, count)
    letters = rng.choice(list(LETTERS), (count, 8), p=share / share.sum())
    return [f" {''.join(row[:n])}".encode() for row, n in zip(letters, sizes, strict=True)]


def store(features: int, path: Path, rng: np.random.Generator) -> contexts.Store:
    """A contexts file of the default sizes."""
    c = Contexts()
    vocabulary = words(VOCABULARY, rng)
    lenses, tokens, width = c.lens_snapshots + 1, c.lens_tokens, 2 * c.window + 1
    sizes = [getattr(c, name) for name in contexts.LISTS]
    dtype = contexts.record_type(sizes, c.window, np.dtype(np.uint16), lenses, tokens)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        about = {
            "format": contexts.FORMAT, "rows": 1_000_000, "features": features, "context": 1024,
            "window": c.window, **{name: getattr(c, name) for name in contexts.LISTS},
        }  # fmt: skip
        file.attrs.update(about)
        file["feature"] = np.arange(features, dtype=np.uint32)
        file["edges"] = contexts.bin_edges()
        file["vocabulary"] = np.frombuffer(b"".join(vocabulary), np.uint8)
        file["vocabulary_stop"] = np.cumsum([len(word) for word in vocabulary])
        file["sites/step"], file["sites/layer"] = STEPS, [6] * len(STEPS)
        file["sites/stream"] = ["residual"] * len(STEPS)
        stored = file.create_dataset("features", (features,), dtype, chunks=(16,))
        for low in range(0, features, 4096):
            part = np.zeros(min(4096, features - low), dtype)
            n = len(part)
            part["feature"] = np.arange(low, low + n)
            part["active"] = rng.integers(10, 20_000, n)
            part["mean"], part["threshold"] = rng.random(n), 1.5
            part["found"] = [c.top, c.quantiles, c.near_misses]
            part["block"] = rng.integers(0, 1000, part["block"].shape)
            part["offset"] = rng.integers(c.window, 1000, part["offset"].shape)
            part["value"] = 1 + rng.random(part["value"].shape)
            part["quantile"] = rng.random(part["quantile"].shape)
            part["token"] = rng.zipf(1.2, part["token"].shape).clip(1, VOCABULARY) - 1
            lit = rng.random(part["activation"].shape) < LIT / width
            lit[..., c.window] = True
            part["activation"] = lit * (0.2 + rng.random(lit.shape))
            part["lens_site"] = rng.integers(0, len(STEPS), part["lens_site"].shape)
            part["lens_strength"] = rng.random(part["lens_strength"].shape)
            part["lens_token"] = rng.integers(0, VOCABULARY, part["lens_token"].shape)
            part["lens_value"] = rng.normal(size=part["lens_value"].shape)
            stored[low : low + n] = part
    return contexts.Store(path)


def synthetic(features: int, work: Path) -> Contents:
    """An experiment of so many living features."""
    rng = np.random.default_rng(0)
    n = len(STEPS)
    place = np.log1p(STEPS)
    onset = rng.uniform(-2, place[-1], features)
    strength = 1 / (1 + np.exp(-2 * (place - onset[:, None])))
    decoders = rng.normal(size=(features, n, WIDTH)).cumsum(1).astype(np.float32)
    decoders *= (strength / np.linalg.norm(decoders, axis=2))[:, :, None].astype(np.float32)
    initial = strength[:, 0] >= 0.5 * strength.max(1)
    kinds = [*KINDS, "none", UNTESTED]
    table = pd.DataFrame(
        {
            "feature": np.arange(features),
            "peak_snapshot_index": strength.argmax(1) + 1,
            "onset_step": np.expm1(onset.clip(0)),
            "settled_step": np.expm1(onset.clip(0)),
            "lifetime": (strength >= 0.5 * strength.max(1, keepdims=True)).mean(1),
            "peak_strength": strength.max(1),
            "density": 10 ** rng.uniform(-5, -1, features),
            "initialisation": initial,
            "emergent": ~initial,
            "transient": rng.random(features) < 0.1,
            "reappearing": rng.random(features) < 0.02,
            "matched_cosine": rng.uniform(0.3, 1, features),
            "kind": rng.choice(kinds, features),
            "span": np.exp(rng.uniform(0, 3, features)),
        }
    )
    matched = table["matched_cosine"].to_numpy() >= 0.7
    table = table.assign(matched=matched, trusted=matched)
    others = strength[:, None] * rng.uniform(0.8, 1.2, (features, 1, n))
    others[~matched] = np.nan
    some = np.flatnonzero(rng.random(features) < 0.3)
    loss = 4 + 6 * np.exp(-place / 3)
    about = {
        "format": FORMAT, "version": "0", "name": f"synthetic-{features}", "model": "synthetic",
        "layer": 6, "stream": "residual", "crosscoder": "batchtopk", "activation": "batch_topk",
        "seeds": [0, 1], "steps": STEPS, "numbers": list(range(1, n + 1)), "tokens": 10**8,
        "held_out": 10**6, "features": features, "explained_variance": 0.9, "l0": 40.0, "dead": 0.0,
        "matched_cosine": 0.7, "presence": 0.5, "curve": {"step": STEPS, "loss": loss},
        "log": None, "kinds": kinds, "classes": [*CLASSES], "doubts": [], "missing": {},
        "command": "python -m benchmarks.atlas",
        "levels": {"unigram_cross_entropy": 7.0, "unigram_crossing_step": 20.0,
                   "bigram_cross_entropy": 5.0, "bigram_crossing_step": 100.0},
        "turning": {"step": 90.0, "low": 64.0, "high": 128.0, "within": 0.8, "between": 0.1},
        "colours": {**COLOURS, "none": COLOURS["unsure"], UNTESTED: COLOURS["unsure"]},
        "contexts": {name: getattr(Contexts(), name) for name in (*contexts.LISTS, "window")},
        "tasks": [{"name": name, "accuracy": 0.9, "difference": 2.0} for name in TASKS],
    }  # fmt: skip
    return Contents(
        about=about,
        table=table,
        decoders=decoders.__getitem__,
        stacked=torch.from_numpy(decoders).flatten(1),
        others=others,
        partner=np.where(matched, np.arange(features), -1)[:, None],
        direction_floor=0.1,
        dimensionality=rng.uniform(0, 1, (features, n)),
        store=store(features, work / f"{features}.h5", rng),
        attribution={name: (some, rng.normal(size=(len(some), n))) for name in TASKS},
    )


def sizes(site: Path) -> dict[str, int]:
    """Bytes of a site's parts."""
    found: dict[str, int] = {}
    for path in site.rglob("*"):
        if path.is_file():
            parts = path.relative_to(site).parts
            name = parts[1].removesuffix(".js") if parts[0] == "data" else "page"
            found[name] = found.get(name, 0) + path.stat().st_size
    return found


def timed(site: Path, features: int) -> dict[str, float]:
    """Seconds of each view, the median over repeats with nothing in the cache."""
    from playwright.sync_api import Page, sync_playwright

    def ready(page: Page, count: int) -> float:
        return float(page.evaluate(SHOWN, count)) / 1000

    def follow(page: Page, change: str, count: int) -> float:
        start = page.evaluate(
            f"(() => {{ const now = performance.now(); {change}; return now; }})()"
        )
        return ready(page, count) - float(start) / 1000

    each: dict[str, list[float]] = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for repeat in range(REPEATS):
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            page.goto(f"file://{site.absolute()}/index.html")
            found = {"first_view": ready(page, 1)}
            ways = {
                "lives": "location.hash = '#/lives'",
                "table": "location.hash = '#/table?sort=-density'",
                "search": "location.hash = '#/table?q=eta'",
                "feature": f"location.hash = '#/feature/{(repeat * 997 + 500) % features}'",
                "next": "document.getElementById('next').click()",
            }
            for count, (name, change) in enumerate(ways.items(), 2):
                found[name] = follow(page, change, count)
            page.context.close()
            for name, value in found.items():
                each.setdefault(name, []).append(value)
        browser.close()
    return {f"{name}_seconds": float(np.median(values)) for name, values in each.items()}


def measure(features: int) -> dict[str, Any]:
    """A row: sizes and times of a site of so many features."""
    site = WORK / str(features)
    contents = synthetic(features, WORK)
    start = time.perf_counter()
    build.write(contents, site)
    seconds = time.perf_counter() - start
    found = sizes(site)
    row = {
        "features": features,
        "bytes": sum(found.values()),
        **{f"{name}_bytes": size for name, size in found.items()},
        "write_seconds": seconds,
        **timed(site, features),
        "processor": platform.processor() or platform.machine(),
    }
    shutil.rmtree(site)
    (WORK / f"{features}.h5").unlink()
    return row


@click.command()
@click.option("--features", multiple=True, type=int, default=SIZES)
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT)
def main(features: tuple[int, ...], output: Path) -> None:
    """Measure sites of some sizes."""
    rows = [measure(count) for count in features]
    write_json(output, rows)
    for row in rows:
        click.echo(
            f"{row['features']:>7,} features: {row['bytes'] / 1e6:.1f} MB, written in "
            f"{row['write_seconds']:.0f} s; first view {row['first_view_seconds']:.2f} s, lives "
            f"{row['lives_seconds']:.2f} s, table "
            f"{row['table_seconds']:.2f} s, search {row['search_seconds']:.2f} s, feature "
            f"{row['feature_seconds']:.2f} s, the next {row['next_seconds']:.2f} s"
        )


if __name__ == "__main__":
    main()

"""Do names mislead? A sample of named features with their contexts, and the same rules by chance.

    python -m benchmarks.names results/default              50 named features, to judge by eye
    python -m benchmarks.names results/default --seed 7     another 50
    python -m benchmarks.names results/default --chance     names of positions drawn at random

By chance each feature gets, instead of its own, as many contexts from
anywhere in the held-out text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pandas as pd

import ontogeny
from ontogeny.analyses.names.measure import Text, names
from ontogeny.analyses.names.settings import Names
from ontogeny.corpus.pieces import visible
from ontogeny.features.contexts import Context, Feature, Store

BEFORE, AFTER = 10, 3  # tokens around the active one


def line(context: Context) -> str:
    """A context in a line: its activation and the text, the active token in brackets."""
    at = context.offset - context.start
    texts = [visible(text) for text in context.texts]
    before, after = "".join(texts[max(0, at - BEFORE) : at]), "".join(texts[at + 1 :][:AFTER])
    return f"{context.value:8.2f} {before:>60}【{texts[at]}】{after}"


def sample(table: pd.DataFrame, store: Store, count: int, seed: int) -> Iterator[str]:
    """The lines of `count` named features drawn with a seed."""
    named = table.loc[table["name"] != ""].set_index("feature")
    rng = np.random.default_rng(seed)
    for number in sorted(rng.choice(named.index, min(count, len(named)), replace=False)):
        feature, about = store.feature(int(number)), named.loc[number]
        yield (
            f"\n{number}  {about['name']}   ({about['rule']}, agreement {about['agreement']:.2f}, "
            f"range {about['range']:.2f}, of the text {about['share']:.3%}; active on "
            f"{feature.density:.2%})"
        )
        yield from ("  largest  " + line(context) for context in feature.top)
        yield from ("  quantile " + line(context) for context in feature.quantiles[::-1])


def elsewhere(feature: Feature, text: Text, rng: np.random.Generator) -> Feature:
    """The feature with its contexts anywhere in the text, as strong as they were."""

    def moved(contexts: list[Context]) -> list[Context]:
        blocks = rng.integers(text.first, text.last, len(contexts))
        offsets = rng.integers(0, text.width, len(contexts))
        return [
            replace(context, block=int(block), offset=int(offset))
            for context, block, offset in zip(contexts, blocks, offsets, strict=True)
        ]

    return replace(feature, top=moved(feature.top), quantiles=moved(feature.quantiles))


@click.command(help=__doc__)
@click.argument("results", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--count", default=50, help="Named features to show.")
@click.option("--seed", default=0)
@click.option("--chance", is_flag=True, help="Name random positions instead.")
def main(results: Path, count: int, seed: int, chance: bool) -> None:
    """Print the sample, or how many features are named by chance."""
    opened = ontogeny.open(results)
    store = opened.contexts()
    if not chance:
        living = opened.table("features").query("alive")["feature"]
        table = opened.table("names")
        for text in sample(table[table["feature"].isin(living)], store, count, seed):
            click.echo(text)
        return
    text, rng = Text(opened.tokens(), store), np.random.default_rng(seed)
    kinds = opened.table("kinds")
    copying = set(kinds.loc[kinds["kind"] == "induction", "feature"])
    features = (elsewhere(store.feature(int(n)), text, rng) for n in store.features)
    found = names(features, text, opened.settings.section(Names), copying)
    found = found[found["name"] != ""]
    click.echo(f"{len(found)} of {len(store)} features have a name by chance")
    click.echo(found.drop(columns="feature").to_string(index=False) if len(found) else "")


if __name__ == "__main__":
    main()

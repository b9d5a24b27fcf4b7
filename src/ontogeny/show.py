"""`ontogeny show`: what is known of one feature, as text for a terminal.

Reads the tables of a finished experiment and makes nothing. What has not been made is left out.

A line is pieces of text, each plain or marked. Every piece is written with `visible` as it is laid
out, whatever it came from: no byte of a corpus, a tokenizer or a table reaches the terminal as a
command.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ontogeny import finished
from ontogeny.corpus.pieces import visible
from ontogeny.features.contexts import Context, Feature, Lens, Store
from ontogeny.files import InputError

PROMOTED = 8  # tokens of a snapshot
NEAREST = 5
LEAST_WIDTH = 24
BAR = 24  # cells, at most
EIGHTHS = " ▏▎▍▌▋▊▉█"
OWN, ACTIVE, HEAD = "\x1b[1;30;43m", "\x1b[33m", "\x1b[1m"
RESET = "\x1b[0m"


class Piece(NamedTuple):
    """Text and how it is marked: '', OWN (in brackets without colour), ACTIVE or HEAD."""

    text: str
    mark: str = ""


class Line(NamedTuple):
    """Pieces that belong together, and by how much the lines that they are folded to go in."""

    pieces: list[Piece]
    indent: int = 4


def show(
    results: str | Path, feature: int, crosscoder: str | None, contexts: int, width: int
) -> list[Line]:
    """All that is known of a feature.

    Parameters
    ----------
    results : folder of the experiment. crosscoder : its name, or None for the primary one.
    contexts : how many of the largest activations to show. width : of the terminal, cells.

    Raises
    ------
    InputError : no experiment, no such crosscoder, no such feature, or damaged files.
    """
    results = Path(results)
    config = finished.configuration(results)
    name = crosscoder or str(config.get("primary", ""))
    tables = results / "features" / name
    every = _table(_tables_of(results, name) / "features.parquet")
    if not 0 <= feature < len(every):
        raise InputError(f"{tables}: no feature {feature}; they are numbered 0 to {len(every) - 1}")
    one = every[every["feature"] == feature].iloc[0]
    history = _rows(tables / "strengths.parquet", feature)
    decoders = _decoders(results, config, name, len(every))
    lines = [Line([Piece(f"feature {feature} of {name}, {results}", HEAD)])]
    lines += _facts(tables, feature, one, len(history))
    lines += _history(tables, history, decoders, feature, every["alive"].to_numpy(), width)
    lines += _contexts(tables / "contexts.h5", feature, bool(one["alive"]), contexts)
    lines += _attribution(results / "circuits" / name / "attribution.parquet", feature)
    lines += _nearest(decoders, feature, every)
    return lines


def _tables_of(results: Path, name: str) -> Path:
    if not (results / "features" / name / "features.parquet").exists():
        there = sorted(p.parent.name for p in results.glob("features/*/features.parquet"))
        raise InputError(
            f"{results}: no features of a crosscoder {name}; there are "
            f"{', '.join(there) or 'none yet: run the experiment'}"
        )
    return results / "features" / name


def _table(path: Path, **more: Any) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, **more)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: damaged; delete it to make it again ({why})") from None


def _rows(path: Path, feature: int) -> pd.DataFrame:
    """A feature's rows of a table that has many of each; none where there is no table."""
    if not path.exists():
        return pd.DataFrame()
    return _table(path, filters=[("feature", "==", feature)])


class Decoders(NamedTuple):
    """Decoders (F, O) in the space they were trained in, and what leads to a site's D from there.

    basis : (N·D, R) and then O = R, or None. sites : N.
    """

    W: np.ndarray
    basis: np.ndarray | None
    sites: int

    def at(self, site: int) -> tuple[np.ndarray, np.ndarray]:
        """(F, O) weights and (O, D) directions whose product is the decoders at a site."""
        if self.basis is not None:
            D = len(self.basis) // self.sites
            return self.W, self.basis[site * D : (site + 1) * D].T
        D = self.W.shape[1] // self.sites
        return self.W[:, site * D : (site + 1) * D], np.eye(D, dtype=self.W.dtype)


def _decoders(results: Path, config: dict[str, Any], name: str, features: int) -> Decoders | None:
    """The decoders of the seed that the tables are of; None where its folder has gone."""
    seeds = config.get("crosscoders", {}).get(name, {}).get("seeds", [0])
    path = results / "crosscoders" / name / f"seed{seeds[0]}" / "crosscoder.safetensors"
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        found = Decoders(tensors["W_dec"], tensors.get("basis"), len(tensors["scales_out"]))
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path}: damaged; delete it to train it again ({error})") from None
    if len(found.W) != features:
        raise InputError(f"{path}: of {len(found.W)} features, the tables of {features}; run again")
    return found


def _facts(tables: Path, feature: int, one: pd.Series, snapshots: int) -> list[Line]:
    if not one["alive"]:
        return [_fact("state", "dead: silent over the end of its training; it has no history")]
    named = ("initialisation", "emergent", "transient")
    classes = [word for word in named if one[word]]
    where = f"snapshot {one['peak_snapshot_index']} of {snapshots}"
    lines = [
        _fact("class", ", ".join(classes)),
        _fact("peak", f"step {one['peak_step']} ({where}), norm {one['peak_strength']:.4g}"),
        _fact("onset", f"step {one['onset_step']:.4g}"),
        _fact("lifetime", f"{one['lifetime']:.0%} of the snapshots"),
        _fact("density", f"{one['density']:.3%} of held-out tokens"),
    ]
    kind = _rows(tables / "kinds.parquet", feature)
    if len(kind):
        lines.append(_fact("kind", str(kind["kind"].iloc[0]).replace("_", " ")))
    for row in _rows(tables / "span.parquet", feature).to_dict("records"):
        spread = f"quartiles {row['span_low']:.3g} to {row['span_high']:.3g}"
        said = f"{row['span']:.3g} tokens of context ({spread}), what is before "
        lines.append(_fact("complexity", said + _RUNS.get(str(row["run"]), str(row["run"]))))
    for row in _rows(tables / "grades.parquet", feature).to_dict("records"):
        if row.get("grade") is not None and row["grade"] == row["grade"]:
            lines.append(_fact("graded", f"{row['grade']:.3g} by a language model"))
    if one["matched_cosine"] == one["matched_cosine"]:
        partner = f"cosine {one['matched_cosine']:.2f} with its partner, feature {one['partner']}"
        lines.append(_fact("matched" if one["matched"] else "unmatched", partner))
    return lines


_RUNS = {"alone": "left out", "replaced": "replaced"}


def _fact(name: str, value: str) -> Line:
    return Line([Piece(f"  {name:<11}"), Piece(value)], 13)


def _heading(text: str) -> list[Line]:
    return [Line([]), Line([Piece(text, HEAD)])]


def _history(
    tables: Path,
    history: pd.DataFrame,
    decoders: Decoders | None,
    feature: int,
    alive: np.ndarray,
    width: int,
) -> list[Line]:
    """A bar a snapshot; with the analysis of dimensionality, how much of a dimension it has."""
    if history.empty or not alive[feature]:
        return []
    history = history.sort_values("snapshot_index")
    known = (tables / "dimensionality.csv").exists() and decoders is not None
    D = dimensionality(decoders, feature, alive) if known and decoders else None
    lines = _heading("strength by snapshot" + (", dimensionality" if D is not None else ""))
    wide = max(len(str(step)) for step in history["step"])
    longest = min(BAR, max(4, width - wide - len("   0.12345  D 0.12")))
    for i, row in enumerate(history.to_dict("records")):
        share = float(row["normalised_strength"])
        end = f" {row['strength']:.3g}" + (f"  D {D[i]:.2f}" if D is not None else "")
        step = Piece(f"  {row['step']:>{wide}} ")
        lines.append(Line([step, Piece(_bar(share, longest)), Piece(end)], wide + 3))
    return lines


def _bar(share: float, longest: int) -> str:
    """A bar of `longest` cells for 1, in eighths of a cell."""
    whole, rest = divmod(round(min(1.0, max(0.0, share)) * longest * 8), 8)
    return ("█" * whole + (EIGHTHS[rest] if rest else "")).ljust(longest)


def dimensionality(decoders: Decoders, feature: int, alive: np.ndarray) -> np.ndarray:
    """D of one feature among the living at every site, (N,): features/dimensionality.py's.

    Σ_j (Ŵ_i·W_j)² needs the feature's own direction alone: nothing has F × N × D entries.
    """
    found = np.zeros(decoders.sites)
    for site in range(decoders.sites):
        W, lead = decoders.at(site)
        own = W[feature].astype(np.float64) @ lead
        squared = float(own @ own)
        overlap = np.square(W[alive].astype(np.float64) @ (lead @ own)).sum()
        found[site] = squared**2 / overlap if overlap > 0 else 0.0
    return found


def _contexts(path: Path, feature: int, alive: bool, count: int) -> list[Line]:
    if not path.exists() or not alive:
        return []
    found: Feature = Store(path).feature(feature)
    lines: list[Line] = []
    parts = [("contexts, strongest first", found.top[:count])]
    parts.append(("contexts by quantile of activation", found.quantiles))
    for title, some in parts:
        if some:
            lines += _heading(title)
        lines += [_context(one) for one in some]
    lenses = _chosen(found.lens)
    if lenses:
        lines += _heading("promoted tokens")
    for name, lens in lenses:
        texts = [text.replace(" ", "␣") for text, _, _ in lens.promoted[:PROMOTED]]
        start = Piece(f"  {name}, step {lens.step}: ")
        lines.append(Line([start, *(Piece(f"{text}  ") for text in texts)]))
    return lines


def _chosen(lenses: Sequence[Lens]) -> list[tuple[str, Lens]]:
    """First, peak and last of the lens's snapshots, each with its name; no step twice."""
    if not lenses:
        return []
    order = sorted(lenses, key=lambda lens: (lens.step, not lens.peak))
    peak = next(lens for lens in order if lens.peak)
    named: dict[int, tuple[str, Lens]] = {}
    for name, lens in (("first", order[0]), ("peak", peak), ("last", order[-1])):
        before = named.get(lens.step)
        named[lens.step] = (f"{before[0]}, {name}" if before else name, lens)
    return list(named.values())


def _context(one: Context) -> Line:
    start = f"  {one.value:>7.3g} "
    if one.quantile is not None:
        start = f"  {one.quantile:>4.0%} {one.value:>7.3g} "
    pieces = [Piece(start)]
    for i, text in enumerate(one.texts):
        if i == one.offset - one.start:
            mark = OWN
        else:
            mark = ACTIVE if one.activations[i] > 0 else ""
        pieces.append(Piece(text, mark))
    return Line(pieces, len(start))


def _attribution(path: Path, feature: int) -> list[Line]:
    """A line a task in which the feature differs between the prompts: strongest and last."""
    rows = _rows(path, feature)
    if rows.empty:
        return []
    lines = _heading("attribution (nats of logit difference; * told from 0)")
    for task, own in rows.groupby("task", sort=False):
        own = own.sort_values("step")
        most, last = own.iloc[int(own["attribution"].abs().argmax())], own.iloc[-1]
        told = f"largest {_value(most)} at step {most['step']}, "
        pieces = [Piece(f"  {task}: "), Piece(told), Piece(f"at the last {_value(last)}")]
        lines.append(Line(pieces))
    return lines


def _value(row: pd.Series) -> str:
    star = "*" if row["told"] else ""
    return f"{row['attribution']:+.3g} ± {row['standard_error']:.1g}{star}"


def _nearest(decoders: Decoders | None, feature: int, every: pd.DataFrame) -> list[Line]:
    """The living features whose decoders, over all snapshots, point most alike."""
    alive = every["alive"].to_numpy()
    if decoders is None or not alive[feature]:
        return []
    W = decoders.W  # the basis is orthonormal: cosines are those of the full decoders
    norm = np.linalg.norm(W, axis=1)
    cosine = W @ W[feature] / np.maximum(norm * norm[feature], 1e-30)
    cosine[~alive] = -np.inf
    cosine[feature] = -np.inf
    near = np.argsort(-cosine, kind="stable")[: min(NEAREST, int(alive.sum()) - 1)]
    peak = every["peak_step"].to_numpy()
    pieces = [Piece(f"{i} ({cosine[i]:.2f}, peak at step {peak[i]})  ") for i in near]
    if not pieces:
        return []
    return [*_heading("nearest features (cosine over all snapshots)"), Line([Piece("  "), *pieces])]


def cells(text: str) -> int:
    """How many cells of a terminal a text of visible characters is wide."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def folded(line: Line, width: int, colour: bool) -> Iterator[str]:
    """A line as lines of at most `width` cells, broken between pieces and, in long ones, words."""
    out: list[str] = []
    used = 0
    indent = min(line.indent, width // 3)
    for piece in line.pieces:
        text = visible(piece.text)
        if piece.mark == OWN and not colour:
            text = f"[{text}]"
        for part in _parts(text, width - indent):
            if used and used + cells(part.rstrip()) > width:
                yield "".join(out).rstrip()
                out, used = [" " * indent], indent
                part = part if piece.mark == OWN else part.lstrip()
            if used + cells(part) > width:
                part = part.rstrip()
            marked = colour and piece.mark and part
            out.append(f"{piece.mark}{part}{RESET}" if marked else part)
            used += cells(part)
    yield "".join(out).rstrip()


def _parts(text: str, width: int) -> Iterator[str]:
    """Words with the spaces after them, none wider than `width`."""
    part, used = "", 0
    for i, letter in enumerate(text):
        size = cells(letter)
        starts = letter != " " and i and text[i - 1] == " " and part.strip()
        if part and (starts or used + size > width):
            yield part
            part, used = "", 0
        part += letter
        used += size
    if part:
        yield part


def write(lines: list[Line], width: int) -> None:
    """Print lines: in colour on a terminal unless NO_COLOR is set.

    What the output's encoding lacks is written as its code.
    """
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    encoding = sys.stdout.encoding or "utf-8"
    for line in lines:
        for text in folded(line, width, colour):
            print(text.encode(encoding, "backslashreplace").decode(encoding))

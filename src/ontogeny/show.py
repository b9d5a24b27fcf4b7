"""`ontogeny show`: what is known about one feature, as text for a terminal.

It reads the tables of a finished experiment and makes nothing. Missing tables are left out.

A line consists of pieces of text, each plain or marked. Every piece passes through `visible` when
it is laid out, whatever its source, so that no byte of a corpus, a tokenizer or a table reaches the
terminal as a command.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ontogeny.analyses.dimensionality.measure import of_decoders
from ontogeny.corpus.pieces import visible
from ontogeny.experiment import Experiment
from ontogeny.features.contexts import Context, Lens
from ontogeny.features.described import CLASSES, DOUBTS, UNTESTED, nearest
from ontogeny.files import InputError

PROMOTED = 8  # tokens to show per snapshot
NEAREST = 5
LEAST_WIDTH = 24
BAR = 24  # most cells
EIGHTHS = " ▏▎▍▌▋▊▉█"
OWN, ACTIVE, HEAD = "\x1b[1;30;43m", "\x1b[33m", "\x1b[1m"
RESET = "\x1b[0m"
RUNS = {"alone": "left out", "replaced": "replaced"}  # ways of measuring the context span


class Piece(NamedTuple):
    """Text and its mark: '', OWN (in brackets without colour), ACTIVE or HEAD."""

    text: str
    mark: str = ""


class Line(NamedTuple):
    """Pieces that belong together, and the indentation of lines after the first when folded."""

    pieces: list[Piece]
    indent: int = 4


class Decoders(NamedTuple):
    """Decoders (F, O) in the space they were trained in, and the map from there to the sites.

    basis : (N·D, R) and then O = R, or None and then O = N·D. sites : N.
    """

    W: np.ndarray
    basis: np.ndarray | None
    sites: int

    def along(self, feature: int) -> np.ndarray:
        """Inner products of all features' decoders with that of one, at every site, (F, N).

        In a principal subspace, no array has F × N × D entries.
        """
        own = self.W[feature].astype(np.float64)
        if self.basis is None:
            shape = (len(self.W), self.sites, -1)
            return np.einsum("fnd,nd->fn", self.W.reshape(shape), own.reshape(shape[1:]))
        U = self.basis.reshape(self.sites, -1, len(own))
        return self.W @ np.einsum("ndr,nd->rn", U, U @ own)


@dataclass(frozen=True)
class Subject:
    """A feature, and the experiment whose tables describe it."""

    experiment: Experiment
    crosscoder: str
    feature: int

    def has(self, product: str) -> bool:
        """Whether a product of the crosscoder has been made."""
        return self.experiment.path(product, crosscoder=self.crosscoder).exists()

    def rows(self, product: str) -> pd.DataFrame:
        """The feature's rows of a table; no rows if the table has not been made."""
        if not self.has(product):
            return pd.DataFrame()
        table = self.experiment.table(product, self.crosscoder)
        return table[table["feature"] == self.feature]

    def decoders(self, features: int) -> Decoders | None:
        """The decoders of the seed behind the tables; None if its folder no longer exists."""
        if not self.has("weights"):
            return None
        path = self.experiment.path("weights", crosscoder=self.crosscoder)
        try:
            tensors = load_file(path)
            about = self.experiment.json("about", crosscoder=self.crosscoder)
            # A hybrid's basis applies only to its encoder.
            basis = tensors.get("basis") if about["basis"] == "principal" else None
            made = Decoders(tensors["W_dec"], basis, len(tensors["scales_out"]))
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"{path}: damaged; delete it to train it again ({error})") from None
        if len(made.W) != features:
            sizes = f"of {len(made.W)} features, the tables of {features}"
            raise InputError(f"{path}: {sizes}; run the experiment again")
        return made


def show(
    experiment: Experiment, feature: int, crosscoder: str | None, contexts: int, width: int
) -> list[Line]:
    """Everything that is known about a feature.

    Parameters
    ----------
    crosscoder : its name, or None for the primary one.
    contexts : how many of the largest activations to show. width : of the terminal, cells.

    Raises
    ------
    InputError : no such crosscoder, no such feature, or damaged files.
    """
    name = crosscoder or experiment.primary
    subject = Subject(experiment, name, feature)
    known = experiment.settings.all_crosscoders
    made = sorted(n for n in known if experiment.path("features", crosscoder=n).exists())
    if name not in made:
        raise InputError(
            f"{experiment.folder}: no features of a crosscoder {name}; there are "
            f"{', '.join(made) or 'none yet: run the experiment'}"
        )
    features = experiment.table("features", name)
    if not 0 <= feature < len(features):
        folder = experiment.path("features", crosscoder=name).parent
        last = len(features) - 1
        raise InputError(f"{folder}: no feature {feature}; they are numbered 0 to {last}")
    row = features[features["feature"] == feature].iloc[0]
    history = subject.rows("strengths")
    decoders = subject.decoders(len(features))
    lines = [Line([Piece(f"feature {feature} of {name}, {experiment.folder}", HEAD)])]
    if not row["alive"]:
        dead = _fact("state", "dead: silent at the end of its training, so it has no history")
        return [*lines, dead, *_attribution(subject)]
    lines += _facts(subject, row, len(history))
    lines += _history(subject, history, decoders, features, width)
    lines += _contexts(subject, contexts)
    lines += _attribution(subject)
    lines += _nearest(decoders, feature, features)
    return lines


def _facts(subject: Subject, row: pd.Series, snapshots: int) -> list[Line]:
    where = f"snapshot {row['peak_snapshot_index']} of {snapshots}"
    named = [f["name"] for f in subject.rows("names").to_dict("records") if f["name"]]
    lines = [
        *(_fact("name", name) for name in named),
        _fact("class", ", ".join(word for word in CLASSES if row[word])),
        _fact("peak", f"step {row['peak_step']} ({where}), norm {row['peak_strength']:.4g}"),
        _fact("onset", f"step {row['onset_step']:.4g}"),
        _fact("settled", f"direction settled from step {row['settled_step']:.4g}"),
        _fact("lifetime", f"{row['lifetime']:.0%} of the snapshots"),
        _fact("density", f"{row['density']:.3%} of held-out tokens"),
    ]
    for trust in subject.rows("trust").to_dict("records"):
        lines += [_fact("doubtful", why) for name, why in DOUBTS.items() if trust[name]]
    for kind in subject.rows("kinds").to_dict("records"):
        untold = kind["kind"] == "none" and kind["cause"] == UNTESTED
        lines.append(_fact("kind", UNTESTED if untold else kind["kind"].replace("_", " ")))
    for span in subject.rows("span").to_dict("records"):
        spread = f"quartiles {span['span_low']:.3g} to {span['span_high']:.3g}"
        said = f"{span['span']:.3g} tokens of context ({spread}), earlier tokens "
        lines.append(_fact("span", said + RUNS.get(span["run"], span["run"])))
    for grade in subject.rows("grades").to_dict("records"):
        if pd.notna(grade.get("grade")):
            lines.append(_fact("graded", f"{grade['grade']:.3g} by a language model"))
    if pd.notna(row["matched_cosine"]):
        partner = f"cosine {row['matched_cosine']:.2f} with its partner, feature {row['partner']}"
        lines.append(_fact("matched" if row["matched"] else "unmatched", partner))
    return lines


def _fact(name: str, value: str) -> Line:
    return Line([Piece(f"  {name:<11}"), Piece(value)], 13)


def _heading(text: str) -> list[Line]:
    return [Line([]), Line([Piece(text, HEAD)])]


def _history(
    subject: Subject,
    history: pd.DataFrame,
    decoders: Decoders | None,
    features: pd.DataFrame,
    width: int,
) -> list[Line]:
    """A bar per snapshot and, if it was analysed, the dimensionality of the feature."""
    if history.empty:
        return []
    D = None
    if decoders is not None and subject.has("dimensionality"):
        D = dimensionality_of(decoders, subject.feature, features["alive"].to_numpy())
    history = history.sort_values("snapshot_index")
    lines = _heading("strength by snapshot" + (", dimensionality" if D is not None else ""))
    wide = max(len(str(step)) for step in history["step"])
    longest = min(BAR, max(4, width - wide - len("   0.12345  D 0.12")))
    for i, row in enumerate(history.to_dict("records")):
        bar = _bar(float(row["normalised_strength"]), longest)
        end = f" {row['strength']:.3g}" + (f"  D {D[i]:.2f}" if D is not None else "")
        step = Piece(f"  {row['step']:>{wide}} ")
        lines.append(Line([step, Piece(bar), Piece(end)], wide + 3))
    return lines


def _bar(share: float, longest: int) -> str:
    """A bar of `longest` cells for 1, in eighths of a cell."""
    whole, rest = divmod(round(min(1.0, max(0.0, share)) * longest * 8), 8)
    return ("█" * whole + (EIGHTHS[rest] if rest else "")).ljust(longest)


def dimensionality_of(decoders: Decoders, feature: int, alive: np.ndarray) -> np.ndarray:
    """Dimensionality of one feature among the living at every site, (N,).

    It depends on the others only through their components along the feature's own direction, so
    one-dimensional decoders with these components give the same number.
    """
    along = decoders.along(feature)[alive]
    return of_decoders(along.T[:, :, None])[int(alive[:feature].sum())]


def _contexts(subject: Subject, count: int) -> list[Line]:
    if not subject.has("contexts"):
        return []
    known = subject.experiment.contexts(subject.crosscoder).feature(subject.feature)
    lines: list[Line] = []
    for title, contexts in (
        ("contexts, strongest first", known.top[:count]),
        ("contexts by quantile of activation", known.quantiles),
    ):
        if contexts:
            lines += _heading(title)
        lines += [_context(context) for context in contexts]
    if known.lens:
        lines += _heading("promoted tokens")
    for name, lens in _chosen(known.lens):
        texts = [text.replace(" ", "␣") for text, _, _ in lens.promoted[:PROMOTED]]
        start = Piece(f"  {name}, step {lens.step}: ")
        lines.append(Line([start, *(Piece(f"{text}  ") for text in texts)]))
    return lines


def _chosen(lenses: Sequence[Lens]) -> list[tuple[str, Lens]]:
    """The first, peak and last of the lens's snapshots, each with its name and no step twice."""
    order = sorted(lenses, key=lambda lens: (lens.step, not lens.peak))
    peak = next(lens for lens in order if lens.peak)
    named: dict[int, tuple[str, Lens]] = {}
    for name, lens in (("first", order[0]), ("peak", peak), ("last", order[-1])):
        before = named.get(lens.step)
        named[lens.step] = (f"{before[0]}, {name}" if before else name, lens)
    return list(named.values())


def _context(context: Context) -> Line:
    quantile = "" if context.quantile is None else f"{context.quantile:>4.0%} "
    start = f"  {quantile}{context.value:>7.3g} "
    pieces = [Piece(start)]
    for i, text in enumerate(context.texts):
        active = ACTIVE if context.activations[i] > 0 else ""
        pieces.append(Piece(text, OWN if i == context.offset - context.start else active))
    return Line(pieces, len(start))


def _attribution(subject: Subject) -> list[Line]:
    """A line per task in which the feature differs between the prompts: strongest and last."""
    rows = subject.rows("attribution")
    if rows.empty:
        return []
    lines = _heading("attribution (nats of logit difference; * differs from 0)")
    for task, own in rows.groupby("task", sort=False):
        own = own.sort_values("step")
        most, last = own.iloc[int(own["attribution"].abs().argmax())], own.iloc[-1]
        largest = Piece(f"largest {_value(most)} at step {most['step']}, ")
        lines.append(Line([Piece(f"  {task}: "), largest, Piece(f"at the last {_value(last)}")]))
    return lines


def _value(row: pd.Series) -> str:
    star = "*" if row["told"] else ""
    return f"{row['attribution']:+.3g} ± {row['standard_error']:.1g}{star}"


def _nearest(decoders: Decoders | None, feature: int, features: pd.DataFrame) -> list[Line]:
    """The living features with the most similar decoders over all snapshots."""
    if decoders is None:
        return []
    living = np.flatnonzero(features["alive"])
    W = torch.from_numpy(decoders.W[living])  # an orthonormal basis preserves cosines
    places, cosines = nearest(W, NEAREST, torch.from_numpy(np.flatnonzero(living == feature)))
    peaks = features["peak_step"].to_numpy()
    pieces = [
        Piece(f"{i} ({cosine:.2f}, peak at step {peaks[i]})  ")
        for i, cosine in zip(living[places[0]], cosines[0], strict=True)
    ]
    if not pieces:
        return []
    return [*_heading("nearest features (cosine over all snapshots)"), Line([Piece("  "), *pieces])]


def cells(text: str) -> int:
    """Width of a text of visible characters in terminal cells."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def folded(line: Line, width: int, colour: bool) -> Iterator[str]:
    """Break a line into lines of at most `width` cells, between pieces and, in long ones, words."""
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
    """Words with the following spaces, none wider than `width`."""
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

    Characters that the output's encoding lacks are written as codes.
    """
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    encoding = sys.stdout.encoding or "utf-8"
    for line in lines:
        for text in folded(line, width, colour):
            print(text.encode(encoding, "backslashreplace").decode(encoding))

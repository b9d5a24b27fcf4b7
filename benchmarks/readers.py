"""The readers of an experiment's files, for benchmarks.damage: commands and the Python interface.

Each runs in a forked process, so that a crash inside a library is seen as one. `begin` imports
everything first: a fork then takes milliseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from benchmarks.digests import PARTS
from ontogeny import lineage, registry
from ontogeny.activations.sites import Site
from ontogeny.cli import main
from ontogeny.declarations import Figure, Optional, Stage
from ontogeny.experiment import Experiment
from ontogeny.files import InputError
from ontogeny.settings import SettingsError

MEMORY = 8 << 30  # bytes that a reader may take besides what this process has
TEXT = "def get(self, name):"
# Names under which stages read products, besides the products' own (Experiment.source).
ALSO = {
    "density": ("densities",),
    "fidelity": ("fidelities", "baselines"),
    "weights": ("crosscoders", "crosscoder"),
    "about": ("crosscoders", "crosscoder"),
    "held_out_loss": ("held_out_losses",),
}
# Commands that take long where nothing stops them; these are not run without digests.
LONG = ("train", "basis", "token_table", "causes", "contexts")
# Modules that readers import as they go.
USED = (
    "matplotlib.pyplot",
    "ontogeny.crosscoder.train",
    "ontogeny.features.histories",
    "ontogeny.snapshots.pretrain",
    "pyarrow.parquet",
    "transformers",
    "transformers.models.gpt_neox.modeling_gpt_neox",
)
# Files that differ between runs of one command.
NOT_COMPARED = re.compile(r"(^|/)(digests|logs)/|\.(pdf|png)$|(^|/)(\.|provenance\.json)")


class Reply(NamedTuple):
    """How a reader ended.

    Attributes
    ----------
    kind : value, line, traceback, crash or timeout. value : what it read, as JSON.
    told : messages, or the end of a traceback.
    """

    kind: str
    value: Any = None
    told: str = ""


def begin() -> None:
    """Import what the readers use. Threads do not survive a fork, so there is only one."""
    for name in USED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    for declared in (*registry.stages().values(), *registry.figures().values()):
        with contextlib.suppress(ImportError):
            importlib.import_module(declared.module)


def forked(read: Callable[[], Any], limit: float) -> Reply:
    """Call a function in a child process.

    Parameters
    ----------
    limit : seconds after which it is ended.
    """
    ours, theirs = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _child(read, theirs)
    os.close(theirs)
    said, until = b"", time.monotonic() + limit
    with open(ours, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0, until - time.monotonic()))[0]:
            piece = pipe.read(1 << 16)
            if not piece:
                break
            said += piece
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Reply("timeout", told=f"after {limit:g} s")
    _, status = os.waitpid(child, 0)
    if not said:
        code = os.waitstatus_to_exitcode(status)
        return Reply(
            "crash", told=f"signal {signal.Signals(-code).name}" if code < 0 else f"{code}"
        )
    return Reply(*json.loads(said))


def _child(read: Callable[[], Any], pipe: int) -> None:
    """Send what a function does through a pipe, and end this process."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        reply = Reply("value", told_of(read()))
    except (InputError, SettingsError) as error:
        reply = Reply("line", told=str(error))
    except BaseException:
        reply = Reply("traceback", told=traceback.format_exc())
    with open(pipe, "wb") as file:
        file.write(json.dumps(reply).encode())
    os._exit(0)


def told_of(value: Any) -> Any:
    """What a reader returned as JSON; arrays, tables and tensors as digests."""
    if isinstance(value, torch.Tensor):
        value = value.detach().float().numpy()
    if isinstance(value, np.ndarray | np.void | np.generic):
        about = f"{value.dtype} {value.shape}"
        return f"{about} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, pd.DataFrame):
        return [list(value), hashlib.sha256(value.to_csv().encode()).hexdigest()]
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): told_of(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [told_of(each) for each in value]
    return value if isinstance(value, str | int | float | None) else repr(value)


def contents(path: Path, inside: Path) -> dict[str, Any]:
    """A file that a command wrote, by its path in the experiment, as digests of its parts."""
    if NOT_COMPARED.search(inside.as_posix()):
        return {}
    try:
        return {str(inside): PARTS[path.suffix](path)}
    except Exception:  # another kind of file, or a copy of a damaged one
        return {str(inside): hashlib.sha256(path.read_bytes()).hexdigest()}


def of(experiment: Experiment, product: str, path: Path) -> dict[str, Callable[[], Any]]:
    """The readers of a file: a command and the Python interface, with and without digests."""
    found: dict[str, Callable[[], Any]] = {}
    words = _command(experiment, product, path)
    if words is not None:
        found["command"] = partial(_run, experiment.folder, words, _archive(path))
    read = _interface(experiment, product, path)
    if read is not None:
        found["interface"] = read
    if words is not None and words[0] not in LONG:
        found["command, no digests"] = found["command"]
    if read is not None:
        found["interface, no digests"] = read
    return found


def _archive(path: Path) -> Path | None:
    """The folder of training states that a file is in."""
    return next((each for each in path.parents if each.name.startswith("archive-")), None)


def _run(folder: Path, words: list[Any], archive: Path | None = None) -> str:
    """What a command prints. Raises InputError with its complaints, as a user would see them.

    Parameters
    ----------
    archive : used even if another version of the code made it.
    """
    if archive is not None:
        vars(lineage)["archive"] = lambda _: archive
    out, complaints = io.StringIO(), io.StringIO()
    figure = words[0] == "figure"
    given = [*words[: 1 + figure], folder, *words[1 + figure :]]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaints):
        try:
            main(list(map(str, given)), standalone_mode=False)
        except SystemExit as end:
            if end.code:
                told = [t for t in complaints.getvalue().splitlines() if t.startswith("ontogeny: ")]
                raise InputError("\n".join(told)) from None
    return out.getvalue()


def _command(experiment: Experiment, product: str, path: Path) -> list[Any] | None:
    """The command that reads a product first, without the experiment's folder; None if none does.

    A figure is preferred to a stage, because it is fast.
    """
    keys = dict(part.split("=") for part in experiment.identify(path).split(" ")[1:])
    step = keys.get("step") or re.sub(r"\D", "", path.parent.name)
    primary = experiment.primary
    seed = experiment.settings.crosscoders[primary].seeds[0]
    basis = experiment.basis_of(primary)
    rows = ["fidelity", primary, "--seed", seed] if basis is None else ["project", basis, 0]
    given = {
        "": ["figure", "training"],  # records of digests
        "config": ["figure", "training"],
        "tokens": ["extract", step or experiment.steps[0]],
        "tokenizer": ["read", TEXT],
        "snapshot": ["extract", step],
        "archive": ["snapshot", step] if path.suffix == ".safetensors" else ["pretrain", "--log"],
        "held_out": ["stack", keys.get("site")],
        "rows": rows,
        "stack": rows,
        "token_table": rows,
        "basis": rows,
        "projected": ["train", primary, "--seed", seed],
        "weights": ["show", 0],
        "numbers": ["summary"],
        "metrics": None,
        "benchmarks": ["timeline"],
    }
    if product in given:
        return given[product]
    names = {product, *ALSO.get(product, ())}
    for name, declared in (registry.figures() | registry.stages()).items():
        if names & {_name(what) for what in declared.reads.values()} and _can(experiment, declared):
            return ["figure", name] if isinstance(declared, Figure) else [name]
    return None


def _name(what: Any) -> str:
    return what.product if isinstance(what, Optional) else what if isinstance(what, str) else ""


def _can(experiment: Experiment, declared: Stage | Figure) -> bool:
    """Whether an experiment has made a figure, or what a stage makes."""
    if isinstance(declared, Figure):
        return experiment.figure(declared.name, "csv").exists()
    return all(experiment.path(name).exists() for name in declared.makes.values())


def _interface(experiment: Experiment, product: str, path: Path) -> Callable[[], Any] | None:
    """The function of the Python interface that reads a file; None if there is none."""
    keys = dict(part.split("=") for part in experiment.identify(path).split(" ")[1:])
    given: dict[str, Callable[..., Any]] = {
        "config": _config,
        "tokens": _tokens,
        "tokenizer": _tokenizer,
        "snapshot": _snapshot,
        "archive": _state,
        "held_out": _held_out,
        "stack": _held_out,
        "rows": _rows,
        "token_table": _token_table,
        "basis": _basis,
        "projected": _projected,
        "weights": _crosscoder,
        "about": _crosscoder,
        "contexts": _contexts,
    }
    if product == "archive" and not path.parent.name.startswith("step"):
        return None
    if product in given:
        return partial(given[product], experiment, path)
    if product and registry.products()[product].path.endswith((".parquet", ".csv")):
        return partial(experiment.table, product, **keys)
    if product and registry.products()[product].path.endswith(".json"):
        return partial(experiment.json, product, **keys)
    return None


def _config(experiment: Experiment, path: Path) -> Any:
    return Experiment.open(path.parent).settings.model_dump(mode="json")


def _tokens(experiment: Experiment, path: Path) -> Any:
    tokens = experiment.tokens()
    about = [tokens.context, tokens.splits, tokens.end_of_text, tokens.vocabulary]
    return [tokens.blocks, about, asdict(tokens.marks), tokens.tokenizer, tokens.digest]


def _tokenizer(experiment: Experiment, path: Path) -> Any:
    from ontogeny.corpus.pieces import read_tokenizer, read_tokens

    pieces = read_tokens(path, experiment.settings.corpus.vocabulary or 256)
    return [list(map(repr, pieces)), read_tokenizer(path).encode(TEXT).ids]


@torch.no_grad()
def _snapshot(experiment: Experiment, path: Path) -> Any:
    from ontogeny.snapshots import sites

    model = sites.load_model(path.parent, torch.device("cpu"), torch.float32)
    return model(input_ids=torch.arange(16)[None]).logits


def _state(experiment: Experiment, path: Path) -> Any:
    from ontogeny.snapshots import pretrain

    settings, tokens = pretrain.section(experiment.settings), experiment.tokens()
    model = pretrain.make_model(settings, tokens.vocabulary, tokens.context)
    optimizers = pretrain.make_optimizers(model, settings)
    folder = path.parent
    log = pretrain._load_state(folder, model, optimizers)
    return [log, model.state_dict(), [each.state_dict()["state"] for each in optimizers]]


def _sites(experiment: Experiment, path: Path) -> list[Site]:
    """The sites of a file of activations or token tables."""
    layers = {f"{s}.{i}": (i, s) for i in experiment.settings.activations.layers
              for s in experiment.settings.activations.streams}  # fmt: skip
    name = path.parent.name if path.parent.name in layers else path.stem
    step = re.match(r"step(\d+)", path.name)
    steps = [int(step[1])] if step else experiment.steps
    return [Site(step, *layers[name]) for step in steps]


def _held_out(experiment: Experiment, path: Path) -> Any:
    from ontogeny.activations.rows import HeldOut

    rows = HeldOut(experiment.path("activations"), _sites(experiment, path))
    return [rows.read(0, rows.rows), rows.position, rows.token, rows.scales, rows.tokens]


def _rows(experiment: Experiment, path: Path) -> Any:
    from ontogeny.activations.rows import Cached

    rows = Cached(experiment.path("activations"), _sites(experiment, path))
    return [rows.read(0, rows.rows), rows.tokens_at(0, rows.rows), rows.scales]


def _token_table(experiment: Experiment, path: Path) -> Any:
    from ontogeny.activations.table import Table

    table = Table(path.parent, _sites(experiment, path))
    return [table.values, table.token, table.scales]


def _basis(experiment: Experiment, path: Path) -> Any:
    from ontogeny.activations.subspace import Kept, Subspace

    space = Subspace(path)
    return [Kept.read(path), space.U, space.mean, space.eigenvalues, space.leading(2)]


def _projected(experiment: Experiment, path: Path) -> Any:
    from ontogeny.activations.subspace import Projected

    rows = Projected([path])
    return rows.read(0, rows.rows)


def _crosscoder(experiment: Experiment, path: Path) -> Any:
    found = experiment.crosscoder()
    return [found.about, found._tensors, found.dead]


def _contexts(experiment: Experiment, path: Path) -> Any:
    store = experiment.contexts()
    records = [store.record(int(feature)) for feature in store.features]
    return [records, [store.feature(int(feature)) for feature in store.features[:20]], store.edges]

"""The bill: what an experiment costs and whether it fits, before it runs (docs/cost.md).

`bill` puts the formulas of cost.py together for one configuration: what is on disk already counts
as paid. With rates, of this machine or of a device (machines.py), it has hours. limits.py says what
of it cannot fit, table.py shows it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py

from ontogeny.activations import order
from ontogeny.activations.sites import basis_name, expand, folder_name
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.sizes import chunk_blocks
from ontogeny.corpus.wheels import most_tokens
from ontogeny.files import InputError
from ontogeny.plan import analyses, cost, machines
from ontogeny.plan.cost import Dictionary, Job, Sizes, Terms
from ontogeny.plan.machines import Machine, Rates, machine
from ontogeny.settings import Crosscoder, Settings
from ontogeny.snapshots import sizes as snapshot_sizes
from ontogeny.snapshots import sources

LARGEST_FILE = 10.5e9  # bytes of one of a snapshot's files; the hub's clients cut at 10 GB or less
COUNTED_TOKENS = 1 << 24  # a smaller corpus is read to know its rows exactly


@dataclass(frozen=True)
class File:
    """What one file, or folder, needs on disk.

    Attributes
    ----------
    kind : a key of limits.DISK. size : bytes, planned. there : bytes of it that are on disk
        already. stays : whether it is kept to the end. data : of `size`, its datasets or tensors;
        0 where that is not told.
    """

    kind: str
    path: Path
    size: int
    stays: bool = True
    there: int = 0
    data: int = 0

    @property
    def missing(self) -> int:
        """Bytes that are still needed."""
        return 0 if self.there else self.size  # files are written whole or not at all


@dataclass(frozen=True)
class Stage:
    """A kind of job.

    Attributes
    ----------
    jobs, left : how many there are, and how many are not done. job : the largest of them.
    work : of all that are left. crosscoder : whose it is.
    at_most : sizes that are bounds until an earlier stage has run.
    """

    name: str
    jobs: int
    left: int
    job: Job
    work: tuple[cost.Work, ...]
    files: tuple[File, ...] = ()
    threads: int = 1
    crosscoder: str = ""
    at_most: bool = False
    on_host: bool = False


@dataclass(frozen=True)
class Bill:
    """What an experiment costs.

    Attributes
    ----------
    folder : of the experiment. stages : in the order that they run. machine : what there is.
    rates : None leaves out hours.
    """

    name: str
    folder: Path
    stages: tuple[Stage, ...]
    machine: Machine
    rates: Rates | None = None
    notes: tuple[str, ...] = ()

    def stage(self, name: str) -> Stage:
        """A stage by its name."""
        return next(s for s in self.stages if s.name == name)

    @property
    def files(self) -> list[File]:
        """Files of all stages."""
        return [file for stage in self.stages for file in stage.files]

    @property
    def disk(self) -> int:
        """Bytes that are still needed, at most at a time."""
        return sum(file.missing for file in self.files)

    @property
    def all_disk(self) -> int:
        """Bytes at most at a time, paid ones included."""
        return sum(max(file.size, file.there) for file in self.files)

    @property
    def stays(self) -> int:
        """Bytes that stay in the end."""
        return sum(file.size for file in self.files if file.stays)

    @property
    def host(self) -> float:
        """Peak bytes of the host's memory of one job."""
        return max((sum(s.job.host.values()) for s in self.stages if s.left), default=0.0)

    @property
    def device(self) -> float:
        """Peak bytes of the device's memory of one job."""
        return max((sum(s.job.device.values()) for s in self.stages if s.left), default=0.0)

    @property
    def hours(self) -> float:
        """Of all jobs that are left, one after the other."""
        return sum(hours(stage, self.rates) for stage in self.stages) if self.rates else math.nan


# Sizes


def _shard_rows(s: Settings, folder: Path, width: int, count: bool) -> tuple[list[int], int, bool]:
    """Training rows by shard, held-out rows, and whether they are exact.

    Exact where activations are there, or tokens that are quickly read and to be counted; else as if
    no position were left out but the first of each block.
    """
    c, a = s.corpus, s.activations
    cut = [range(order.number_of_windows(c.train_blocks, c.context, a.window))]
    if a.mode == "cached":
        cut = order.shards(s, width)
    for place in folder.glob("activations/*/stack.h5"):
        try:
            with h5py.File(place, "r") as file:
                rows = [int(n) for n in file.attrs["shard_rows"]]
                held_out = int(file["held_out/position"].shape[0])
        except (OSError, KeyError):
            continue
        if len(rows) == len(cut) and sum(rows) <= c.train_blocks * c.context:
            return rows, held_out, True
    try:
        tokens = Tokens(folder / "corpus" / "tokens.h5")
        sizes = tokens.size("train"), tokens.size("held_out")
        ours = sizes == (c.train_blocks, c.held_out_blocks) and tokens.context == c.context
        if count and ours and sum(sizes) * c.context <= COUNTED_TOKENS:
            train = order.Order(tokens, "train", a)
            rows = [int(train.starts[w.stop] - train.starts[w.start]) for w in cut]
            return rows, order.Order(tokens, "held_out", a).rows, True
    except InputError:
        pass
    each = c.context - ("first" in a.leave_out)
    return [n * each for n in _shard_blocks(s, cut)], c.held_out_blocks * each, False


def _shard_blocks(s: Settings, cut: list[range]) -> list[int]:
    """Blocks of each shard: NumPy's array_split gives the first windows one more."""
    count = cut[-1].stop
    least, more = divmod(s.corpus.train_blocks, count)
    return [len(w) * least + max(0, min(w.stop, more) - min(w.start, more)) for w in cut]


def sizes(
    s: Settings, results: str | Path, here: Machine, count: bool = True
) -> tuple[Sizes, bool]:
    """The experiment's sizes, and whether its numbers of rows are exact.

    Parameters
    ----------
    count : whether tokens that are there are read for the number of rows.

    Raises
    ------
    InputError : the model's shape cannot be known, or a layer is not there.
    """
    model = sources.shape_of(s, results)
    gpu = here.device != 0
    precision = s.activations.precision
    if precision == "auto":
        precision = "bfloat16" if gpu and here.half else "float32"
    rows, held_out, exact = _shard_rows(s, Path(results) / s.name, model.width, count)
    file_bytes = sources.weight_bytes(s, results)
    run_bytes = 4 if precision == "float32" else 2
    return Sizes(s, model, file_bytes, run_bytes, gpu, tuple(rows), held_out), exact


def dictionary(z: Sizes, c: Crosscoder, folder: Path) -> tuple[Dictionary, bool]:
    """A crosscoder's sizes, and whether its dimensions are known."""
    steps = z.s.snapshots.chosen
    inputs = expand(c.inputs, steps)
    outputs = inputs if c.outputs is None else expand(c.outputs, steps)
    snapshots = len({site.snapshot for site in inputs + outputs})
    known, dimensions = True, None
    if c.basis == "principal":
        dimensions = z.s.basis.dimensions
        if dimensions is None:
            try:
                with h5py.File(folder / "basis" / f"{basis_name(c.inputs)}.h5", "r") as file:
                    dimensions = int(file["basis"].shape[1])
            except (OSError, KeyError):
                rows = min(z.s.basis.rows, z.rows)
                dimensions = min(len(inputs) * z.model.width, z.s.basis.largest, rows)
                known = False
    return (
        Dictionary(c, len(inputs), len(outputs), z.model.width, dimensions, snapshots),
        known,
    )


# The bill


class _Maker:
    """Puts the stages together."""

    def __init__(self, s: Settings, results: Path, here: Machine, count: bool) -> None:
        self.s, self.folder = s, results / s.name
        self.z, self.exact = sizes(s, results, here, count)
        self.notes: list[str] = []
        found = {n: dictionary(self.z, c, self.folder) for n, c in s.crosscoders_to_train.items()}
        self.dictionaries = {name: d for name, (d, _) in found.items()}
        self.known = {name: known for name, (_, known) in found.items()}
        c = s.corpus
        self.cut = [range(self.z.windows)]
        if not self.z.streamed:
            self.cut = order.shards(s, self.z.model.width)
        self.blocks = _shard_blocks(s, self.cut)
        self.corpus_blocks = c.train_blocks + c.held_out_blocks
        self.kind = str(sources.architecture(s, results).get("model_type"))

    def file(self, kind: str, path: str, size: float, stays: bool = True, data: float = 0) -> File:
        """A file of the experiment's folder."""
        place = self.folder / path
        return File(kind, place, int(size), stays, _size(place), int(data))

    def hdf5(self, kind: str, path: str, data: int, chunks: int = 0, stays: bool = True) -> File:
        """An HDF5 file of so many bytes of datasets, in so many chunks."""
        return self.file(kind, path, cost.hdf5_file(data, chunks), stays, data)

    def stage(
        self, name: str, jobs: list[tuple[Job, bool]], files: list[File], **more: Any
    ) -> Stage:
        """A stage of some jobs, each done or not."""
        left = [job for job, done in jobs if not done]
        largest = max((j for j, _ in jobs), key=lambda j: sum(j.host.values()))
        if not self.z.gpu and not more.get("on_host"):
            largest = Job(largest.work, _merged(largest.host, largest.device), {})
        work = tuple(job.work for job in left)
        return Stage(name, len(jobs), len(left), largest, work, tuple(files), **more)

    def corpus(self) -> Stage:
        """The corpus: tokens and tokenizer."""
        z, c, blocks = self.z, self.s.corpus, self.corpus_blocks
        at_most = False
        if self.s.snapshots.pretrain is not None:
            if c.pretrain_blocks is not None:
                blocks += c.pretrain_blocks
            else:
                blocks, at_most = self._all_blocks(blocks)
        size = cost.tokens_dataset(blocks, c.context, z.model.vocabulary)
        chunks = -(-blocks // chunk_blocks(c.context, 2))
        files = [
            self.hdf5("tokens", "corpus/tokens.h5", size, chunks),
            self.file("tokens", "corpus/tokenizer.json", 80 * z.model.vocabulary),
        ]
        self.ngram_blocks = c.train_blocks
        if self.s.snapshots.pretrain is not None:
            self.ngram_blocks = blocks - self.corpus_blocks
        done = files[0].there > 0
        job = cost.corpus(z, blocks)
        return self.stage("corpus", [(job, done)], files, threads=2, at_most=at_most, on_host=True)

    def _all_blocks(self, least: int) -> tuple[int, bool]:
        """Blocks of a text that is used up, and whether that is a bound."""
        try:
            with h5py.File(self.folder / "corpus" / "tokens.h5", "r") as file:
                return int(file["tokens"].shape[0]), False
        except (OSError, KeyError):
            pass
        c = self.s.corpus
        if c.wheels is not None:
            return most_tokens(c) // c.context, True
        from ontogeny.corpus import text

        found = text.files(c.files) if c.files is not None else []
        return max(least, sum(path.stat().st_size for path in found) // 2 // c.context), True

    def pretrain(self) -> list[Stage]:
        """Training of the language model, and its snapshots."""
        p, z = self.s.snapshots.pretrain, self.z
        if p is None:
            return []
        steps = sorted({0, *self.s.snapshots.chosen, p.steps})
        tensors = snapshot_sizes.neox_tensors(p.layers)
        header = cost.SAFETENSORS_TENSOR * tensors
        weights = cost.pretrain_weights(z.model) + header
        moments = cost.pretrain_moments(z.model, p) + 3 * header
        # The newest archive is this configuration's, if any is.
        there = sorted(self.folder.glob("pretrain/archive-*"), key=lambda p: p.stat().st_mtime)
        archive = f"pretrain/{there[-1].name if there else 'archive'}"
        files = []
        for step in steps:
            size = weights + (moments if step else 0) + 1500 + 120 * (step // 10)
            data = cost.pretrain_weights(z.model)
            data += cost.pretrain_moments(z.model, p) if step else 0
            files.append(self.file("training states", f"{archive}/step{step}", size, data=data))
        done = all(file.there for file in files)
        passing = [t for t in range(0, p.steps, snapshot_sizes.SAVE_EVERY) if t not in steps]
        files += [
            self.file(
                "training states", f"{archive}/step{step}", 0 if done else weights + moments, False
            )
            for step in passing
        ]
        return [self.stage("pretrain", [(cost.pretrain(z), done)], files, threads=p.threads)]

    def snapshots(self) -> Stage:
        """The snapshots' folders."""
        z, source = self.z, self.s.snapshots
        tensors = 14 * z.model.layers + 8
        size = z.model.parameters * z.file_bytes + 2000.0 + cost.SAFETENSORS_TENSOR * tensors
        if source.hub is not None and self.kind in ("gpt_neox", "gpt2"):
            # Files of older transformers hold each block's causal mask, a byte an entry.
            size += z.model.layers * (z.model.positions or 0) ** 2
            self.notes.append("snapshots: with the causal masks that older files hold, at most")
        if source.local is not None and self._linked():
            size = 2000
            self.notes.append("snapshots: linked, not copied")
        data = cost.pretrain_weights(z.model) if source.pretrain is not None else 0
        files = [
            self.file("snapshots", f"snapshots/step{step}", size, data=data)
            for step in source.chosen
        ]
        fetched = size if source.hub is not None else 0.0
        copied = 0.0 if source.hub is not None else size
        work = cost.Work(fetched=fetched, read=copied, written=size, starts=0.5)
        host = {"Python": 0.3e9}
        if source.pretrain is None:  # pickles, which many are, are rewritten file by file
            host = cost.base(False)[0] | {"a snapshot as it loads": 2.0 * min(size, LARGEST_FILE)}
        jobs = [(Job(work, host), file.there > 0) for file in files]
        return self.stage("snapshots", jobs, files, on_host=True)

    def _linked(self) -> bool:
        """Whether local snapshots lie where files of this experiment can be linked to them."""
        from ontogeny.snapshots import local

        assert self.s.snapshots.local is not None, "asked for local snapshots alone"
        found = local.folders(self.s.snapshots.local).values()
        home = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        device = home.stat().st_dev
        return all(path.stat().st_dev == device for path in found if path.exists()) and not any(
            (path / "pytorch_model.bin").exists() for path in found
        )

    def _unread(self, shard: int) -> bool:
        """Whether something has yet to read a shard's training rows."""
        for name, d in self.dictionaries.items():
            c = self.s.all_crosscoders[name]
            stem = self.folder / "basis" / basis_name(c.inputs)
            if d.dimensions is not None:
                readers = [Path(f"{stem}.rows{shard}.h5")]
            else:
                readers = [
                    self.folder / "crosscoders" / name / f"seed{seed}" / "fidelity.csv"
                    for seed in c.seeds
                ]
            if not all(reader.exists() for reader in readers):
                return True
        return False

    def extract(self) -> Stage:
        """Held-out rows of every snapshot, and the training rows where they are cached."""
        z, a = self.z, self.s.activations
        width, item = z.model.width, z.item
        files: list[File] = []
        jobs: list[tuple[Job, bool]] = []
        held_out = z.held_out_rows
        stays = a.keep and len(self.cut) == 1
        places = [folder_name(ly, st) for ly in a.layers for st in a.streams]
        shards = [] if z.streamed else list(range(len(self.cut)))
        unread = {k: self._unread(k) for k in shards}
        first = self.blocks[0] if not z.streamed else -(-self.s.corpus.train_blocks // z.windows)
        per_job = {0: cost.extract(z, 0, first)}
        per_job |= {k: cost.extract(z, k, self.blocks[k]) for k in shards[1:]}

        def rows_file(
            kind: str, path: str, rows: int, stays: bool = True, counted: bool = True
        ) -> File:
            data = cost.activations_datasets(rows, width, item)
            file = self.hdf5(kind, path, data, cost.chunks_of(rows, width, item), stays)
            return file if counted else replace(file, size=0, data=0)

        for step in self.s.snapshots.chosen:
            stems = [f"activations/{place}/step{step}" for place in places]
            made = [rows_file("held-out rows", f"{stem}.h5", held_out) for stem in stems]
            files += made
            jobs.append((per_job[0], all(file.there for file in made)))
            for k in shards:
                # Of several shards two are on disk at a time; the first two stand for all.
                counted = k < 2 and (stays or unread[k])
                rows = z.shard_rows[k]
                written = [
                    rows_file("training rows", f"{stem}.rows{k}.h5", rows, stays, counted)
                    for stem in stems
                ]
                files += written
                done = not unread[k] or all(file.there for file in written)
                if k == 0:
                    jobs[-1] = (per_job[0], jobs[-1][1] and done)
                else:
                    jobs.append((per_job[k], done))
        stack = 40_000 + 8 * z.held_out_rows
        files += [self.file("held-out rows", f"activations/{p}/stack.h5", stack) for p in places]
        return self.stage("extract", jobs, files, at_most=not self.exact)

    def basis(self) -> list[Stage]:
        """Principal subspaces, and the cached rows in them."""
        z, b = self.z, self.s.basis
        stages, seen = [], set()
        for name, d in self.dictionaries.items():
            c = self.s.all_crosscoders[name]
            if d.dimensions is None or basis_name(c.inputs) in seen:
                continue
            sites = basis_name(c.inputs)
            seen.add(sites)
            n, R = d.inputs * d.width, d.dimensions
            at_most = not (self.known[name] and self.exact)
            M = cost.basis_directions(n, b.exact_limit, b.largest, min(b.rows, z.rows))
            data = cost.basis_datasets(n, R, M, d.inputs)
            file = self.hdf5("basis", f"basis/{sites}.h5", data)
            stages.append(
                self.stage(
                    f"basis {sites}",
                    [(cost.basis(z, d), file.there > 0)],
                    [file],
                    threads=2,
                    at_most=not self.known[name],
                )
            )
            if z.streamed:
                continue
            files = []
            for k, rows in enumerate(z.shard_rows):
                data, chunks = cost.rows_dataset(rows, R, 2), cost.chunks_of(rows, R, 2)
                files.append(self.hdf5("projected rows", f"basis/{sites}.rows{k}.h5", data, chunks))
            jobs = [(cost.project(z, d, k), f.there > 0) for k, f in enumerate(files)]
            stages.append(self.stage(f"project {sites}", jobs, files, threads=2, at_most=at_most))
        return stages

    def crosscoders(self) -> Iterator[Stage]:
        """Training, fidelity and features of each crosscoder."""
        z = self.z
        trained: list[Stage] = []
        measured: list[Stage] = []
        described: list[Stage] = []
        for name, d in self.dictionaries.items():
            c = self.s.all_crosscoders[name]
            at_most = not (self.known[name] and self.exact) or c.activation != "batch_topk"
            if c.activation != "batch_topk":
                share = cost.JUMPRELU_ACTIVE if c.activation == "jumprelu" else cost.RELU_L0_SHARE
                self.notes.append(
                    f"{name}: as if {share:.0%} of the features acted on a token; {c.activation} "
                    "has no number beforehand"
                )
            files = []
            for seed in c.seeds:
                folder = f"crosscoders/{name}/seed{seed}"
                tensors = cost.crosscoder_tensors(d)
                size = tensors + 11 * cost.SAFETENSORS_TENSOR
                logged = -(-c.steps // cost.LOG_EVERY) * 19 * (11 + d.outputs) + 2500
                logged += 60 * d.outputs
                path = f"{folder}/crosscoder.safetensors"
                files.append(self.file("crosscoders", path, size, data=tensors))
                files.append(self.file("crosscoders", f"{folder}/metrics.csv", logged))
                tables = 16 * c.features + 3000 + 200 * d.outputs
                files.append(self.file("tables", f"{folder}/density.parquet", tables))
            weights = files[::3]
            fine = [f.there > 0 for f in weights]
            state = cost.hdf5_file(cost.state_datasets(d)) * (0 if all(fine) else 1)
            path = f"state/{name}"
            passing = [self.file("crosscoders", path, state, stays=False)]
            trained.append(
                self.stage(
                    f"train {name}",
                    [(cost.train(z, d), done) for done in fine],
                    files + passing,
                    threads=c.threads,
                    crosscoder=name,
                    at_most=at_most,
                )
            )
            measures = [f"crosscoders/{name}/seed{seed}/fidelity.csv" for seed in c.seeds]
            seen = [(self.folder / path).exists() for path in measures]
            measured.append(
                self.stage(
                    f"fidelity {name}",
                    [(cost.fidelity(z, d), done) for done in seen],
                    [],
                    crosscoder=name,
                    at_most=at_most,
                )
            )
            if self._has_features(c, d):
                folder = f"features/{name}"
                strengths = 20 * c.features * d.outputs + 5000
                described_in = [
                    self.file("tables", f"{folder}/features.parquet", 120 * c.features + 10_000),
                    self.file("tables", f"{folder}/strengths.parquet", strengths),
                    self.file("tables", f"{folder}/matches.csv", 70 * c.features + 500),
                    self.file("tables", f"{folder}/directions.csv", 120 * d.outputs**2 + 500),
                ]
                job = cost.features(z, d)
                described.append(
                    self.stage(
                        f"features {name}",
                        [(job, described_in[0].there > 0)],
                        described_in,
                        crosscoder=name,
                        on_host=True,
                    )
                )
        yield from trained
        yield from measured
        yield from described

    def _has_features(self, c: Crosscoder, d: Dictionary) -> bool:
        sites = c.outputs or c.inputs
        alone = len(sites.layers) == len(sites.streams) == 1
        return c.train_decoder and alone and d.outputs >= 4

    def phases(self) -> Stage:
        """The snapshots' losses."""
        job = cost.phases(self.z, self.ngram_blocks)
        file = self.file("tables", "phases/phases.csv", 100 * self.z.snapshots + 200)
        return self.stage("phases", [(job, file.there > 0)], [file])

    def analyses(self) -> Iterator[Stage]:
        """The jobs of the analyses that are made by default."""
        z, s, name = self.z, self.s, self.s.primary
        d, names = self.dictionaries[name], set(self.s.analyses)
        F, n, home = d.c.features, d.outputs, f"features/{name}"

        def one(
            stage: str, job: Job, files: list[File], crosscoder: str = name, on_host: bool = False
        ) -> Stage:
            done = all(file.there for file in files)
            known = self.known.get(crosscoder, True) and self.exact
            return self.stage(
                f"{stage} {crosscoder}".rstrip(),
                [(job, done)],
                files,
                crosscoder=crosscoder,
                at_most=not known,
                on_host=on_host,
            )

        def table(path: str, size: float) -> File:
            return self.file("tables", path, size + 5000)

        if self._has_features(d.c, d):
            if "dimensionality" in names:
                size = 90 * n * (4 * len(d.c.seeds) + 1)
                files = [table(f"{home}/dimensionality.csv", size)]
                yield one("dimensionality", analyses.measure_dimensionality(z, d), files)
            if "kinds" in names:
                files = [table(f"{home}/kinds.parquet", 100 * F + 4000)]
                yield one("kinds", analyses.judge_kinds(z, d), files)
            if "contexts" in names:
                of_each = analyses.contexts_record(z)
                files = [
                    table(f"{home}/contexts.h5", F * of_each + 12 * z.model.vocabulary),
                    table(f"{home}/contexts.parquet", 1500 * F),
                ]
                yield one("contexts", analyses.gather_contexts(z, d), files)
            if "complexity" in names:
                files = [
                    table(f"{home}/span.parquet", 120 * F),
                    table(f"{home}/span_contexts.parquet", 600 * F),
                ]
                yield one("span", analyses.measure_span(z, d), files)
                files = [table(f"{home}/complexity.csv", 10_000)]
                yield one("complexity", analyses.correlate_complexity(z, d), files, on_host=True)
            if "presence" in names:
                for other in s.crosscoders:
                    e = self.dictionaries[other]
                    if self._has_features(e.c, e):
                        size = 100 * e.c.features * e.outputs
                        files = [table(f"features/{other}/presence.parquet", size)]
                        yield one("presence", analyses.measure_presence(z, e), files, other)
            if "circuits" in names:
                folder = f"circuits/{name}"
                files = [table("circuits/tasks.h5", 300_000)]
                yield one("tasks", analyses.light(), files, "", on_host=True)
                rows = n * len(s.circuits.tasks) * F / 4
                files = [
                    table(f"{folder}/attribution.parquet", 60 * rows),
                    table(f"{folder}/differences.h5", 100_000 + 40 * rows / n),
                ]
                yield one("attribution", analyses.attribution(z, d), files)
                files = [table(f"{folder}/curves.csv", 200_000)]
                yield one("ablation", analyses.ablation(z, d), files)
        if "induction" in names:
            _, sums = analyses.heads_arrays(z)
            files = [
                table("phases/heads.h5", 8 * sums + 30_000),
                table("phases/heads.csv", 70 * sums / z.s.heads.blocks),
            ]
            yield one("heads", analyses.measure_heads(z), files, "")
            files = [table("phases/induction.csv", 10_000)]
            yield one("induction", analyses.order_onsets(z), files, "", on_host=True)

    def figures(self) -> Stage:
        """Figures and summary: seconds and megabytes; stated, not reckoned."""
        job = Job(cost.Work(starts=4), {"Python": 0.4e9})
        file = self.file("tables", "figures", 8_000_000)
        return self.stage("figures", [(job, file.there > 0)], [file], on_host=True)


def _merged(*terms: Terms) -> Terms:
    """Sums of terms of the same name."""
    found: Terms = {}
    for each in terms:
        for name, size in each.items():
            found[name] = found.get(name, 0.0) + size
    return found


def _size(path: Path) -> int:
    """Bytes of a file or of a folder's files; 0 where nothing is."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    try:
        return path.stat().st_size
    except OSError:
        return 0


def bill(s: Settings, results: str | Path, rates: Rates | None = None) -> Bill:
    """What an experiment costs, what is on disk already left out.

    Parameters
    ----------
    s : the settings, steps resolved. results : the folder that holds the experiments' folders.
    rates : of `measure` or `table`; its device takes the place of what is here.

    Raises
    ------
    InputError : the model's shape cannot be known, or the settings fit no rows.
    """
    here = machine(s, results)
    if rates is not None:
        here = replace(here, device=rates.memory, device_name=rates.name, half=rates.bfloat16)
    found, notes = stages(s, results, here)
    return Bill(s.name, Path(results) / s.name, found, here, rates, notes)


def stages(
    s: Settings, results: str | Path, here: Machine, count: bool = True
) -> tuple[tuple[Stage, ...], tuple[str, ...]]:
    """The stages of the default target on a machine, in the order that they run, and notes on them.

    Parameters
    ----------
    count : as for `sizes`.
    """
    maker = _Maker(s, Path(results), here, count)
    first = [maker.corpus(), *maker.pretrain(), maker.snapshots(), maker.extract()]
    found = [*first, *maker.basis(), *maker.crosscoders(), maker.phases(), *maker.analyses()]
    return (*found, maker.figures()), tuple(dict.fromkeys(maker.notes))


def measure(s: Settings, results: str | Path) -> Rates:
    """Rates of this machine at the experiment's own sizes (machines.measure)."""
    z, _ = sizes(s, results, machine(s, results))
    folder = Path(results) / s.name
    dictionaries = (dictionary(z, c, folder)[0] for c in s.crosscoders_to_train.values())
    largest = max(dictionaries, key=lambda d: d.c.features * d.I)
    return machines.measure(s, results, z.model, largest)


def hours(stage: Stage, rates: Rates) -> float:
    """Hours of a stage's jobs that are left, one after the other."""
    cores = os.cpu_count() or 1
    threads = min(stage.threads, cores)
    work = stage.work
    if rates.memory == 0:  # where several processes share one processor
        work = tuple(replace(w, ranks=min(w.ranks, cores // threads)) for w in work)
    return sum(seconds(w, rates, threads, stage.on_host) for w in work) / 3600


def seconds(w: cost.Work, rates: Rates, threads: int = 1, on_host: bool = False) -> float:
    """Seconds of a job's work.

    Parameters
    ----------
    threads : of a CPU, whose rates are of one. on_host : products are NumPy's.
    """
    known, reached = machines.data()["host"], machines.data()["reached"]
    speed = 1 + (threads - 1) * reached["threads"] if rates.memory == 0 else 1.0
    dense = rates.products32 if not on_host else _host_products(rates)
    speed *= 1 + (w.ranks - 1) * reached["ranks"]
    found = (
        w.forward / rates.forward + w.forward32 / rates.forward32 + w.pairs / rates.pairs
        + w.moved / rates.moved + w.products / rates.products + w.products32 / dense
    ) / speed  # fmt: skip
    found += w.host_moved / rates.host_moved
    found += w.read / rates.read + w.written / rates.write
    found += w.fetched / known["fetch"] + w.tokenised / known["tokens"]
    found += w.assigned**2.5 * known["assign"] + w.compiled * known["compile"]
    return float(found + w.starts * (rates.start or known["start"]))


def _host_products(rates: Rates) -> float:
    """FLOP/s of NumPy's products on the host, where the device is another."""
    return rates.products32 if rates.memory == 0 else 5e10

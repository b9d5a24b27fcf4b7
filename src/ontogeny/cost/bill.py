"""The bill: what an experiment costs and whether it fits, before it runs (docs/cost.md).

`bill` makes one pass over the experiment's map: each stage's jobs, the files that they make, what
is done already. With rates, of this machine or of a device (machines.py), it has hours. limits.py
says what of it cannot fit, table.py shows it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import h5py

from ontogeny import lineage, registry, running
from ontogeny.activations import cost as of_rows
from ontogeny.activations import order
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.sizes import chunk_blocks
from ontogeny.corpus.wheels import most_tokens
from ontogeny.cost import machines, scales
from ontogeny.cost import terms as sizes_of
from ontogeny.cost.machines import Machine, Rates
from ontogeny.cost.rates import COSTS
from ontogeny.cost.terms import Dictionary, Job, Sizes, Work, hdf5_file, merged
from ontogeny.crosscoder import cost as of_training
from ontogeny.crosscoder.sizes import LOG_EVERY
from ontogeny.declarations import Cost, Figure, Optional, Stage
from ontogeny.experiment import Experiment
from ontogeny.files import InputError
from ontogeny.settings import Settings, Sites
from ontogeny.snapshots import cost as of_model
from ontogeny.snapshots import sources
from ontogeny.snapshots.sizes import SAVE_EVERY

COUNTED_TOKENS = 1 << 24  # a smaller corpus is read to know its rows exactly


@dataclass(frozen=True)
class File:
    """What one file, or folder, needs on disk.

    Attributes
    ----------
    kind : a key of limits.DISK. size : bytes, planned. stays : whether it is kept to the end.
    there : bytes of it that are on disk already. data : of `size`, its datasets or tensors; 0
        where that is not known.
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
class Line:
    """A stage of the bill, of one crosscoder or basis where it is one's.

    Attributes
    ----------
    which : the crosscoder, or the sites of a basis; '' where it is the experiment's.
    jobs, left : how many there are, and how many are not done. job : the largest of them.
    work : of all that are left. at_most : sizes are bounds until an earlier stage has run.
    on_host : the device is left alone.
    """

    stage: str
    which: str
    jobs: int
    left: int
    job: Job
    work: tuple[Work, ...]
    files: tuple[File, ...]
    threads: int = 1
    at_most: bool = False
    on_host: bool = False

    @property
    def name(self) -> str:
        """Such as "train batchtopk"."""
        return f"{self.stage} {self.which}".rstrip()

    def hours(self, rates: Rates) -> float:
        """Of the jobs that are left, one after the other."""
        cores = os.cpu_count() or 1
        threads, work = min(self.threads, cores), self.work
        if rates.memory == 0:  # where several processes share one processor
            work = tuple(replace(w, ranks=min(w.ranks, cores // threads)) for w in work)
        return sum(machines.seconds(w, rates, threads, self.on_host) for w in work) / 3600


@dataclass(frozen=True)
class Bill:
    """What an experiment costs: lines in the order that the stages run, and what there is."""

    folder: Path
    lines: tuple[Line, ...]
    machine: Machine
    rates: Rates | None = None
    notes: tuple[str, ...] = ()

    def line(self, name: str) -> Line:
        """A line by its name, such as "train batchtopk"."""
        return next(line for line in self.lines if line.name == name)

    @property
    def files(self) -> list[File]:
        """Files of all stages."""
        return [file for line in self.lines for file in line.files]

    @property
    def disk(self) -> int:
        """Bytes that are still needed, at most at a time."""
        return sum(file.missing for file in self.files)

    @property
    def host(self) -> float:
        """Peak bytes of the host's memory of one job that is left."""
        return max((sum(line.job.host.values()) for line in self.lines if line.left), default=0.0)

    @property
    def device(self) -> float:
        """Peak bytes of the device's memory of one job that is left."""
        return max((sum(line.job.device.values()) for line in self.lines if line.left), default=0.0)

    @property
    def hours(self) -> float:
        """Of all jobs that are left, one after the other."""
        return sum(line.hours(self.rates) for line in self.lines) if self.rates else math.nan


# Sizes


def _text_blocks(experiment: Experiment) -> tuple[int, bool]:
    """Blocks of the tokens, and whether that is exact: a text that is used up has a bound alone."""
    corpus = experiment.settings.corpus
    known = corpus.train_blocks + corpus.held_out_blocks
    if experiment.settings.snapshots.pretrain is None:
        return known, True
    if corpus.pretrain_blocks is not None:
        return known + corpus.pretrain_blocks, True
    try:
        with h5py.File(experiment.path("tokens"), "r") as file:
            return int(file["tokens"].shape[0]), True
    except (OSError, KeyError):
        pass
    if corpus.wheels is not None:
        return most_tokens(corpus) // corpus.context, False
    from ontogeny.corpus import text

    files = text.files(corpus.files) if corpus.files is not None else []
    return max(known, sum(path.stat().st_size for path in files) // 2 // corpus.context), False


def _rows(
    experiment: Experiment, shards: list[range], count: bool
) -> tuple[list[int], int, bool] | None:
    """Training rows by shard and held-out rows, and whether they are exact.

    Exact where activations are there, or tokens that are quickly read and to be counted; else as if
    no position were left out but the first of each block.
    """
    corpus, activations = experiment.settings.corpus, experiment.settings.activations
    for site in experiment.sites:
        try:
            with h5py.File(experiment.path("stack", site=site), "r") as file:
                rows = [int(n) for n in file.attrs["shard_rows"]]
                held_out = int(file["held_out/position"].shape[0])
        except (OSError, KeyError):
            continue
        if len(rows) == len(shards) and sum(rows) <= corpus.train_blocks * corpus.context:
            return rows, held_out, True
    try:
        tokens = Tokens(experiment.path("tokens")) if count else None
        sizes = (tokens.size("train"), tokens.size("held_out")) if tokens else ()
        ours = sizes == (corpus.train_blocks, corpus.held_out_blocks)
        if tokens and ours and sum(sizes) * corpus.context <= COUNTED_TOKENS:
            train = order.Order(tokens, "train", activations)
            rows = [int(train.starts[w.stop] - train.starts[w.start]) for w in shards]
            return rows, order.Order(tokens, "held_out", activations).rows, True
    except InputError:
        pass
    return None


def sizes(experiment: Experiment, here: Machine, count: bool = True) -> Sizes:
    """The experiment's sizes.

    Parameters
    ----------
    count : whether tokens that are there are read for the number of rows.

    Raises
    ------
    InputError : the model's shape cannot be known, or a layer is not there.
    """
    settings, results = experiment.settings, experiment.results
    model = sources.shape_of(settings, results)
    gpu, precision = here.device != 0, settings.activations.precision
    if precision == "auto":
        precision = "bfloat16" if gpu and here.half else "float32"
    text_blocks, text_exact = _text_blocks(experiment)
    z = Sizes(
        settings, model, sources.weight_bytes(settings, results), 4 if precision == "float32" else 2,
        gpu, (), (), 0, text_blocks, text_exact=text_exact,
    )  # fmt: skip
    shards = [range(z.windows)] if z.streamed else order.shards(settings, model.width)
    z = replace(z, shards=tuple(shards))
    rows = _rows(experiment, shards, count)
    if rows is None:
        each = z.context - ("first" in settings.activations.leave_out)
        of_shards = [blocks * each for blocks in of_rows.shard_blocks(z)]
        rows = of_shards, settings.corpus.held_out_blocks * each, False
    return replace(z, shard_rows=tuple(rows[0]), held_out_rows=rows[1], exact=rows[2])


def dictionary(experiment: Experiment, z: Sizes, name: str) -> Dictionary:
    """A crosscoder's sizes; until its basis is there, with the most dimensions that it may have."""
    settings, chosen = experiment.settings, experiment.settings.all_crosscoders[name]
    outputs = chosen.outputs or chosen.inputs

    def steps(sites: Sites) -> list[int]:
        return experiment.steps if sites.snapshots == "all" else list(sites.snapshots)

    def count(sites: Sites) -> int:
        return len(sites.layers) * len(sites.streams) * len(steps(sites))

    dimensions, known, basis = None, True, experiment.basis_of(name)
    if basis is not None:
        dimensions = settings.basis.dimensions
    if basis is not None and dimensions is None:
        try:
            with h5py.File(experiment.path("basis", sites=basis), "r") as file:
                dimensions = int(file["basis"].shape[1])
        except (OSError, KeyError):
            rows, largest = min(settings.basis.rows, z.rows), settings.basis.largest
            dimensions = min(count(chosen.inputs) * z.model.width, largest, rows)
            known = False
    snapshots = len({*steps(chosen.inputs), *steps(outputs)})
    return Dictionary(
        chosen, count(chosen.inputs), count(outputs), z.model.width, dimensions, snapshots, known
    )


# The pass over the map


class _Pass:
    """One pass over the map of an experiment.

    Parameters
    ----------
    everything : all that can be asked for, not the default target alone.
    """

    def __init__(
        self, experiment: Experiment, here: Machine, count: bool, everything: bool
    ) -> None:
        self.map, self.settings = experiment, experiment.settings
        self.everything = everything
        self.z = sizes(experiment, here, count)
        self.notes: dict[str, None] = {}
        names = self.settings.all_crosscoders if everything else self.settings.crosscoders_to_train
        self.dictionaries = {name: dictionary(experiment, self.z, name) for name in names}

    def __iter__(self) -> Iterator[Line]:
        """The lines, in the order that the stages run."""
        settings, path = self.settings, self.map.path
        if self.everything:
            yield self.of_cost("fetch", [[self.map.wheels]])
            yield self.of_cost("tokenizer", [[path("own_tokenizer")]])
        yield self.corpus()
        if settings.snapshots.pretrain is not None:
            yield self.pretrain()
        yield self.snapshots()
        yield self.extract()
        yield self.of_cost("stack", [[path("stack", site=site)] for site in self.map.sites])
        for sites, name in self.map.bases(self.dictionaries).items():
            yield from self.basis(sites, self.dictionaries[name])
        for name, d in self.dictionaries.items():
            yield self.train(name, d)
        for name in self.dictionaries:
            made = [self.map.seeds_of(product, name) for product in ("fidelity", "density")]
            yield self.of_cost(
                "fidelity", [list(pair) for pair in zip(*made, strict=True)], name, True
            )
        for stage, name in self.declared():
            outputs = [path(product, crosscoder=name) for product in stage.makes.values()]
            yield self.of_cost(stage.name, [outputs], name, stage.gpu, stage.cost)
        drawn = [self.map.figure(name, "csv") for name in self.map.figures()]
        yield self.of_cost("figures", [drawn], gpu=False)
        if self.everything or self.map.has_histories(self.map.primary):
            yield self.of_cost("atlas", [[path("atlas")]])
        yield self.of_cost("summary", [[path("summary")]])

    def declared(self) -> Iterator[tuple[Stage, str]]:
        """The declared stages that the figures come from, and the crosscoder of each ('': none)."""
        asked: dict[str, dict[str, None]] = {}

        def ask(declared: Stage | Figure, crosscoders: Iterable[str]) -> None:
            for what in declared.reads.values():
                if isinstance(what, Optional):
                    owner = running.owner(declared)
                    what = what.product if self.map.has(what.when or what.product, owner) else ""
                stage = registry.stage_of(what) if isinstance(what, str) else None
                if stage is None:
                    continue
                names = self.map.with_histories if declared.scope == "compared" else crosscoders
                names = list(names) if stage.scope == "crosscoder" else [""]
                known = asked.setdefault(stage.name, {})
                if not set(names) <= set(known):
                    known.update(dict.fromkeys(names))
                    ask(stage, [name or self.map.primary for name in names])

        for name in self.map.figures():
            ask(registry.figures()[name], [self.map.primary])
        for stage in registry.stages().values():
            names = asked.get(stage.name, {})
            if self.everything and running.exists(self.map, stage):
                every = {self.map.primary, *self.map.with_histories}
                names = dict.fromkeys(every if stage.scope == "crosscoder" else [""])
            yield from ((stage, name) for name in names)

    # Lines

    def file(self, kind: str, path: Path, size: float, stays: bool = True, data: float = 0) -> File:
        """A file, with what of it is on disk."""
        return File(kind, path, int(size), stays, size_of(path), int(data))

    def line(
        self,
        stage: str,
        jobs: list[tuple[Job, bool]],
        files: Iterable[File],
        which: str = "",
        threads: int = 1,
        at_most: bool = False,
        on_host: bool = False,
    ) -> Line:
        """A line of some jobs, each done or not."""
        largest = max((job for job, _ in jobs), key=lambda job: sum(job.host.values()))
        if not self.z.gpu:
            largest = Job(largest.work, merged(largest.host, largest.device), {})
        work = tuple(job.work for job, done in jobs if not done)
        return Line(
            stage,
            which,
            len(jobs),
            len(work),
            largest,
            work,
            tuple(files),
            threads,
            at_most,
            on_host,
        )

    def of_cost(
        self,
        stage: str,
        outputs: list[list[Path]],
        which: str = "",
        gpu: bool = False,
        cost: Cost | None = None,
        files: Iterable[File] = (),
    ) -> Line:
        """A line of jobs whose cost is declared, each by what it makes."""
        d = self.dictionaries[which or self.map.primary]
        cost = cost or COSTS[stage]
        job = scales.job(cost, self.z, d, gpu)
        size = scales.amount(cost.disk, self.z, d)
        tables, jobs = list(files), []
        for paths in outputs:
            done = all(path.exists() for path in paths)
            there = sum(map(size_of, paths)) if done else 0
            tables.append(File("tables", paths[0], int(size), there=there))
            jobs.append((job, done))
        at_most = bool(which) and not (d.known and self.z.exact)
        return self.line(stage, jobs, tables, which, at_most=at_most, on_host=not gpu)

    def corpus(self) -> Line:
        """The tokens and their tokenizer."""
        z, path = self.z, self.map.path("tokens")
        item = 2 if z.model.vocabulary <= 2**16 else 4
        chunk = chunk_blocks(z.context, item)
        data = sizes_of.chunked(z.text_blocks, z.context, item, chunk)
        tokens = self.file("tokens", path, hdf5_file(data, -(-z.text_blocks // chunk)), data=data)
        line = self.of_cost("corpus", [[self.map.path("tokenizer")]], files=[tokens])
        return replace(line, at_most=not z.text_exact)

    def pretrain(self) -> Line:
        """Training of the language model."""
        settings, archive = self.settings.snapshots.pretrain, lineage.archive(self.map)
        assert settings is not None
        steps = sorted({0, *self.map.steps, settings.steps})
        files = []
        for step in steps:
            size, data = of_model.state(self.z, step)
            files.append(self.file("training states", archive / f"step{step}", size, data=data))
        done = all(file.there for file in files)
        for step in range(0, settings.steps, SAVE_EVERY):
            if step not in steps and not done:
                size, _ = of_model.state(self.z, step)
                files.append(self.file("training states", archive / f"step{step}", size, False))
        job = of_model.pretrain(self.z)
        return self.line("pretrain", [(job, done)], files, threads=settings.threads)

    def snapshots(self) -> Line:
        """The snapshots' folders."""
        source = self.settings.snapshots
        kind = str(sources.architecture(self.settings, self.map.results).get("model_type"))
        size = of_model.folder(self.z, kind)
        if of_model.has_masks(self.z, kind):
            self.notes["snapshots: with the causal masks that older files hold, at most"] = None
        if source.local is not None and self._linked():
            size = 2000
            self.notes["snapshots: linked, not copied"] = None
        data = of_model.weights(self.z) if source.pretrain is not None else 0
        paths = [self.map.path("snapshot", step=step) for step in self.map.steps]
        files = [self.file("snapshots", path, size, data=data) for path in paths]
        job = of_model.snapshot(self.z, size)
        return self.line("snapshot", [(job, f.there > 0) for f in files], files, on_host=True)

    def _linked(self) -> bool:
        """Whether local snapshots lie where files of this experiment can be linked to them."""
        from ontogeny.snapshots import local

        assert self.settings.snapshots.local is not None, "asked for local snapshots alone"
        folders = local.folders(self.settings.snapshots.local).values()
        device = machines.nearest(self.map.folder).stat().st_dev
        return all(path.stat().st_dev == device for path in folders if path.exists()) and not any(
            (path / "pytorch_model.bin").exists() for path in folders
        )

    def _unread(self, shard: int) -> bool:
        """Whether something has yet to read a shard's training rows."""
        for name in self.dictionaries:
            basis = self.map.basis_of(name)
            readers = self.map.seeds_of("fidelity", name)
            if basis is not None:
                readers = [self.map.path("projected", sites=basis, shard=shard)]
            if not all(path.exists() for path in readers):
                return True
        return False

    def extract(self) -> Line:
        """Held-out rows of every snapshot, and the training rows where they are cached."""
        z, settings, path = self.z, self.settings.activations, self.map.path
        stays = settings.keep and len(z.shards) == 1
        shards = [] if z.streamed else list(range(len(z.shards)))
        unread = {shard: self._unread(shard) for shard in shards}
        each = {shard: of_rows.extract(z, shard) for shard in (shards or [0])}
        files: list[File] = []
        jobs: list[tuple[Job, bool]] = []

        def rows(kind: str, path: Path, count: int, stays: bool = True, paid: bool = True) -> File:
            data, chunks = sizes_of.rows_dataset(count, z.model.width, z.item, positions=True)
            size = hdf5_file(data, chunks)
            return self.file(kind, path, size * paid, stays, data * paid)

        for step in self.map.steps:
            held_out = [path("held_out", site=site, step=step) for site in self.map.sites]
            made = [rows("held-out rows", each, z.held_out_rows) for each in held_out]
            files += made
            jobs.append((each[0], all(file.there for file in made)))
            for shard in shards:
                # Of several shards two are on disk at a time; the first two stand for all.
                paid, count = shard < 2 and (stays or unread[shard]), z.shard_rows[shard]
                written = [
                    rows("training rows", path, count, stays, paid)
                    for path in self.map.rows_of(step, shard, self.map.sites)
                ]
                files += written
                done = not unread[shard] or all(file.there for file in written)
                if shard == 0:
                    jobs[-1] = each[0], jobs[-1][1] and done
                else:
                    jobs.append((each[shard], done))
        stacks = [path("stack", site=site) for site in self.map.sites]
        files += [self.file("held-out rows", p, 40_000 + 8 * z.held_out_rows) for p in stacks]
        return self.line("extract", jobs, files, at_most=not z.exact)

    def basis(self, sites: str, d: Dictionary) -> Iterator[Line]:
        """A principal subspace, and the cached rows in it."""
        data = of_rows.basis_datasets(self.z, d)
        file = self.file("basis", self.map.path("basis", sites=sites), hdf5_file(data), data=data)
        job = of_rows.basis(self.z, d)
        yield self.line(
            "basis", [(job, file.there > 0)], [file], sites, threads=2, at_most=not d.known
        )
        files, jobs = [], []
        for shard, path in enumerate(self.map.projected(sites)):
            data, chunks = sizes_of.rows_dataset(self.z.shard_rows[shard], d.dimensions or 0, 2)
            files.append(self.file("projected rows", path, hdf5_file(data, chunks), data=data))
            jobs.append((of_rows.project(self.z, d, shard), files[-1].there > 0))
        if jobs:
            at_most = not (d.known and self.z.exact)
            yield self.line("project", jobs, files, sites, threads=2, at_most=at_most)

    def train(self, name: str, d: Dictionary) -> Line:
        """Training of a crosscoder, each seed."""
        chosen = d.crosscoder
        if chosen.activation != "batch_topk":
            self.notes[
                f"{name}: as if {d.active / d.F:.0%} of the features were active on a token; "
                f"{chosen.activation} has no number beforehand"
            ] = None
        logged = -(-chosen.steps // LOG_EVERY) * 19 * (11 + d.outputs) + 2500 + 60 * d.outputs
        size = d.tensors + 11 * sizes_of.SAFETENSORS_TENSOR
        files, jobs = [], []
        for path in self.map.seeds_of("weights", name):
            files.append(self.file("crosscoders", path, size, data=d.tensors))
            jobs.append((of_training.train(self.z, d), files[-1].there > 0))
        tables = self.map.seeds_of("metrics", name)
        files += [self.file("crosscoders", path, logged) for path in tables]
        if not all(done for _, done in jobs):
            state = self.map.path("state", crosscoder=name, seed=chosen.seeds[0], digest="")
            size = hdf5_file(of_training.state_datasets(d))
            files.append(self.file("crosscoders", state, size, stays=False))
        at_most = not (d.known and self.z.exact) or chosen.activation != "batch_topk"
        return self.line("train", jobs, files, name, threads=chosen.threads, at_most=at_most)


def size_of(path: Path) -> int:
    """Bytes of a file or of a folder's files; 0 where nothing is."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    try:
        return path.stat().st_size
    except OSError:
        return 0


def lines(
    experiment: Experiment, here: Machine, count: bool = True, everything: bool = False
) -> tuple[tuple[Line, ...], tuple[str, ...]]:
    """The lines of the default target, or of all that can be asked for, and notes on them.

    Parameters
    ----------
    count : as for `sizes`.
    """
    made = _Pass(experiment, here, count, everything)
    return tuple(made), tuple(made.notes)


def bill(settings: Settings, results: str | Path, rates: Rates | None = None) -> Bill:
    """What an experiment costs, what is on disk already left out.

    Parameters
    ----------
    settings : steps resolved. results : the folder that holds the experiments' folders.
    rates : of `measure` or machines.table; its device takes the place of what is here.

    Raises
    ------
    InputError : the model's shape cannot be known, or the settings fit no rows.
    """
    experiment = Experiment(Path(results) / settings.name, settings)
    here = machines.machine(settings, results)
    if rates is not None:
        here = replace(here, device=rates.memory, device_name=rates.name, half=rates.bfloat16)
    made, notes = lines(experiment, here)
    return Bill(experiment.folder, made, here, rates, notes)


def measure(settings: Settings, results: str | Path) -> Rates:
    """Rates of this machine at the experiment's own sizes (machines.measure)."""
    experiment = Experiment(Path(results) / settings.name, settings)
    z = sizes(experiment, machines.machine(settings, results))
    trained = (dictionary(experiment, z, name) for name in settings.crosscoders_to_train)
    return machines.measure(experiment, z.model, max(trained, key=lambda d: d.F * d.I))

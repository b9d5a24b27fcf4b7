"""The bill: what an experiment costs and whether it fits, before it runs (docs/cost.md).

`bill` makes one pass over the experiment's map and collects each stage's jobs, the files that they
make, and what is done already. With the rates of this machine or of a device (machines.py), it adds
hours. limits.py finds what cannot fit, and table.py formats the bill.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ontogeny import lineage, registry, running, streams
from ontogeny.activations import cost as of_rows
from ontogeny.activations.sizes import PLACE_BYTES
from ontogeny.corpus.sizes import chunk_blocks
from ontogeny.cost import machines, scales
from ontogeny.cost.machines import Machine, Rates
from ontogeny.cost.rates import COSTS
from ontogeny.cost.sizes import Dictionary, dictionary, sizes
from ontogeny.cost.terms import Job, Work, merged
from ontogeny.crosscoder import cost as of_training
from ontogeny.crosscoder.sizes import LOG_EVERY
from ontogeny.declarations import Cost, Figure, Optional, Stage
from ontogeny.experiment import Experiment
from ontogeny.files import InputError
from ontogeny.settings import Local, Settings
from ontogeny.snapshots import cost as of_model
from ontogeny.snapshots import local, sources, weights
from ontogeny.snapshots.sizes import SAVE_EVERY

BESIDE = 20_000  # approximate bytes of a file besides its data: headers, attributes, an index


@dataclass(frozen=True)
class File:
    """The disk space of one file or folder.

    Attributes
    ----------
    kind : a key of limits.DISK. size : planned bytes. stays : whether it is kept to the end.
    there : bytes of it that are on disk already. missing : bytes that are still needed.
    """

    kind: str
    path: Path
    size: int
    stays: bool = True
    there: int = 0

    @property
    def missing(self) -> int:
        return 0 if self.there else self.size  # files are written atomically


@dataclass(frozen=True)
class Line:
    """A stage in the bill, for one crosscoder or basis if the stage has one.

    Attributes
    ----------
    which : the crosscoder, or the sites of a basis; '' if the stage is the whole experiment's.
    jobs, left : number of jobs, and of those not done. job : the largest of them.
    work : of all jobs left. on_host : the device is not used.
    at_most : sizes are upper bounds until an earlier stage has run. name : such as
        "train batchtopk".
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
        return f"{self.stage} {self.which}".rstrip()

    def hours(self, rates: Rates) -> float:
        """Hours of the jobs that are left, run one after another."""
        cores = os.cpu_count() or 1
        threads, work = min(self.threads, cores), self.work
        if rates.memory == 0:  # several processes share one processor
            work = tuple(replace(each, ranks=min(each.ranks, cores // threads)) for each in work)
        return sum(machines.seconds(each, rates, threads, self.on_host) for each in work) / 3600


@dataclass(frozen=True)
class Bill:
    """What an experiment costs.

    Attributes
    ----------
    lines : in the order in which the stages run. machine : what this machine has.
    rates : None gives no hours. disk : most bytes that are still needed at any time.
    host, device : peak bytes of memory of one job that is left.
    hours : of all jobs that are left, run one after another.
    """

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
        return [file for line in self.lines for file in line.files]

    @property
    def disk(self) -> int:
        return sum(file.missing for file in self.files)

    @property
    def host(self) -> float:
        return max((sum(line.job.host.values()) for line in self.lines if line.left), default=0.0)

    @property
    def device(self) -> float:
        return max((sum(line.job.device.values()) for line in self.lines if line.left), default=0.0)

    @property
    def hours(self) -> float:
        return sum(line.hours(self.rates) for line in self.lines) if self.rates else math.nan


class _Pass:
    """One pass over the map of an experiment.

    Parameters
    ----------
    count : as for `sizes`. everything : all possible targets, not only the default one.
    """

    def __init__(
        self, experiment: Experiment, here: Machine, count: bool, everything: bool
    ) -> None:
        self.map, self.settings = experiment, experiment.settings
        self.everything = everything
        self.sizes = sizes(experiment, here, count)
        self.notes: dict[str, None] = {}
        names = self.settings.all_crosscoders if everything else self.settings.crosscoders_to_train
        self.of = {name: dictionary(experiment, self.sizes, name) for name in names}

    def __iter__(self) -> Iterator[Line]:
        """The lines, in the order in which the stages run."""
        settings, path = self.settings, self.map.path
        if self.everything or settings.corpus.wheels is not None:
            yield self.costed("fetch", [[self.map.wheels]])
        if self.everything or settings.snapshots.pretrain is None:
            yield self.costed("tokenizer", [[path("own_tokenizer")]])
        yield self.corpus()
        if settings.snapshots.pretrain is not None:
            yield self.pretrain()
        yield self.snapshots()
        yield self.extract()
        yield self.costed("stack", [[path("stack", site=site)] for site in self.map.sites])
        tables = [[path] for path in self.tables()]
        yield self.costed("token_table", tables, gpu=True)
        for sites, name in self.map.bases(self.of).items():
            yield from self.basis(sites, self.of[name])
        for stream in streams.of(self.map):
            if self.streamed(stream):
                yield self.stream(stream)
        for name in self.of:
            yield self.train(name)
        for name in self.of:
            made = [self.map.seeds_of(product, name) for product in ("fidelity", "density")]
            outputs = [list(pair) for pair in zip(*made, strict=True)]
            yield self.costed("fidelity", outputs, name, gpu=True)
        for stage, name in self.declared():
            outputs = [[path(product, crosscoder=name) for product in stage.makes.values()]]
            yield self.costed(stage.name, outputs, name, stage.gpu, stage.cost)
        yield self.costed("figures", [[self.map.figure(n, "csv") for n in self.map.figures()]])
        if self.everything or self.map.has_histories(self.map.primary):
            yield self.costed("atlas", [[path("atlas")]])
        yield self.costed("numbers", [[path("numbers")]])
        yield self.costed("summary", [[path("summary")]])

    def declared(self) -> Iterator[tuple[Stage, str]]:
        """The declared stages that the figures need, each with its crosscoder ('' if none)."""
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
                every = {self.map.primary: None} | dict.fromkeys(self.map.with_histories)
                names = every if stage.scope == "crosscoder" else {"": None}
            yield from ((stage, name) for name in names)

    # Lines

    def line(
        self,
        stage: str,
        jobs: list[tuple[Job, bool]],
        files: Iterable[File],
        which: str = "",
        **more: Any,
    ) -> Line:
        """A line for some jobs, each of which is done or not."""
        largest = max(
            (job for job, _ in jobs), key=lambda job: (sum(job.host.values()), job.work.flops)
        )
        if not self.sizes.gpu:
            largest = Job(largest.work, merged(largest.host, largest.device))
        work = tuple(job.work for job, done in jobs if not done)
        return Line(stage, which, len(jobs), len(work), largest, work, tuple(files), **more)

    def costed(
        self,
        stage: str,
        outputs: list[list[Path]],
        which: str = "",
        gpu: bool = False,
        cost: Cost | None = None,
    ) -> Line:
        """A line for jobs with a declared cost; each job is given by its outputs."""
        cost, of = cost or COSTS[stage], self.of[which or self.map.primary]
        job, size = scales.job(cost, self.sizes, of, gpu), scales.amount(cost.disk, self.sizes, of)
        files, jobs = [], []
        for paths in outputs:
            done = all(path.exists() for path in paths)
            there = sum(map(size_of, paths)) if done else 0
            files.append(File("tables", paths[0], int(size), there=there))
            jobs.append((job, done))
        at_most = bool(which) and not (of.known and self.sizes.exact)
        return self.line(stage, jobs, files, which, at_most=at_most, on_host=not gpu)

    def corpus(self) -> Line:
        """The tokens and their tokenizer."""
        context, item = self.sizes.context, 2 if self.sizes.model.vocabulary <= 2**16 else 4
        chunk = chunk_blocks(context, item)
        size = -(-self.sizes.text_blocks // chunk) * chunk * context * item
        line = self.costed("corpus", [[self.map.path("tokenizer")]])
        files = (*line.files, file("tokens", self.map.path("tokens"), size))
        return replace(line, files=files, at_most=not self.sizes.text_exact)

    def pretrain(self) -> Line:
        """Training of the language model."""
        settings, archive = self.settings.snapshots.pretrain, lineage.archive(self.map)
        assert settings is not None
        weights, moments = of_model.weights(self.sizes), of_model.moments(self.sizes)
        states = {
            step: file(
                "training states", archive / f"step{step}", weights + (moments if step else 0)
            )
            for step in sorted({0, *self.map.steps, settings.steps})
        }
        files, jobs, before = list(states.values()), [], 0
        for leg in self.map.legs:
            reached = all(state.there for step, state in states.items() if step <= leg)
            share = (leg - before) / settings.steps
            jobs.append((of_model.pretrain(self.sizes, share), reached))
            before = leg
        for step in range(0, settings.steps, SAVE_EVERY):
            if step not in states and not all(done for _, done in jobs):
                path = archive / f"step{step}"
                files.append(file("training states", path, weights + moments, stays=False))
        return self.line("pretrain", jobs, files, threads=settings.threads)

    def snapshots(self) -> Line:
        """The folders of the snapshots."""
        source = self.settings.snapshots.local
        kind = str(sources.architecture(self.settings, self.map.results).get("model_type"))
        size, masks = of_model.folder(self.sizes, kind)
        if masks:
            self.notes["snapshots: with the causal masks that older files hold, at most"] = None
        paths = [self.map.path("snapshot", step=step) for step in self.map.steps]
        links = set() if source is None else self._linked(source)
        if links:
            few = "" if links >= set(self.map.steps) else f" ({len(links)} of {len(paths)})"
            self.notes[f"snapshots: linked, not copied{few}"] = None
        sizes = [0.0 if step in links else size for step in self.map.steps]
        files = [file("snapshots", *each) for each in zip(paths, sizes, strict=True)]
        made = [of_model.snapshot(self.sizes, size) for size in sizes]
        jobs = [(job, f.there > 0) for job, f in zip(made, files, strict=True)]
        return self.line("snapshot", jobs, files, on_host=True)

    def _linked(self, source: Local) -> set[int]:
        """The steps of local snapshots whose files can be linked into this experiment."""
        home, links = machines.nearest(self.map.folder), set()
        for step, folder in local.folders(source).items():
            try:
                found = local.found_at(source, folder)
            except InputError:
                continue
            if step in self.map.steps and weights.linked(found, home):
                links.add(step)
        return links

    def tables(self) -> list[Path]:
        """The token tables of every layer and stream that a crosscoder reads or writes."""
        return list(dict.fromkeys(path for name in self.of for path in self.map.tables(name)))

    def _unread(self, shard: int) -> bool:
        """Whether some job has yet to read a shard's training rows."""
        if shard == 0 and not all(path.exists() for path in self.tables()):
            return True
        for name in self.of:
            basis = self.map.basis_of(name)
            readers = self.map.seeds_of("fidelity", name)
            if basis is not None:
                readers = [self.map.path("projected", sites=basis, shard=shard)]
            if not all(path.exists() for path in readers):
                return True
        return False

    def extract(self) -> Line:
        """Held-out rows of every snapshot, and training rows if they are cached."""
        sizes, settings, path = self.sizes, self.settings.activations, self.map.path
        stays = settings.keep and len(sizes.shards) == 1
        shards = [] if sizes.streamed else list(range(len(sizes.shards)))
        unread = {shard: self._unread(shard) for shard in shards}
        costs = {shard: of_rows.extract(sizes, shard) for shard in (shards or [0])}
        row = sizes.model.width * sizes.item + PLACE_BYTES
        files: list[File] = []
        jobs: list[tuple[Job, bool]] = []
        for step in self.map.steps:
            paths = [path("held_out", site=site, step=step) for site in self.map.sites]
            made = [file("held-out rows", each, sizes.held_out_rows * row) for each in paths]
            files += made
            jobs.append((costs[0], all(each.there for each in made)))
            for shard in shards:
                # If there are several shards, two are on disk at a time; the first two represent
                # all of them.
                paid = shard < 2 and (stays or unread[shard])
                size = sizes.shard_rows[shard] * row if paid else -BESIDE
                paths = self.map.rows_of(step, shard, self.map.sites)
                made = [file("training rows", each, size, stays) for each in paths]
                files += made
                done = not unread[shard] or all(each.there for each in made)
                if shard == 0:
                    jobs[-1] = costs[0], jobs[-1][1] and done
                else:
                    jobs.append((costs[shard], done))
        for site in self.map.sites:
            size = PLACE_BYTES * sizes.held_out_rows
            files.append(file("held-out rows", path("stack", site=site), size))
        return self.line("extract", jobs, files, at_most=not sizes.exact)

    def basis(self, sites: str, of: Dictionary) -> Iterator[Line]:
        """A principal subspace, and the cached rows projected into it."""
        made = file(
            "basis", self.map.path("basis", sites=sites), of_rows.basis_size(self.sizes, of)
        )
        jobs = [(of_rows.basis(self.sizes, of), made.there > 0)]
        yield self.line("basis", jobs, [made], sites, threads=2, at_most=not of.known)
        files, jobs = [], []
        for shard, path in enumerate(self.map.projected(sites)):
            size = 2.0 * self.sizes.shard_rows[shard] * (of.dimensions or 0)
            files.append(file("projected rows", path, size))
            jobs.append((of_rows.project(self.sizes, of, shard), files[-1].there > 0))
        if jobs:
            at_most = not (of.known and self.sizes.exact)
            yield self.line("project", jobs, files, sites, threads=2, at_most=at_most)

    def train(self, name: str) -> Line:
        """Training of a crosscoder with each of its seeds."""
        of = self.of[name]
        chosen, assumed = of.crosscoder, of.crosscoder.activation != "batch_topk"
        if assumed:
            self.notes[
                f"{name}: as if {of.active / of.F:.0%} of the features were active on a token; "
                f"{chosen.activation} has no number beforehand"
            ] = None
        files = [
            file("crosscoders", path, of.tensors) for path in self.map.seeds_of("weights", name)
        ]
        done = [weights.there > 0 for weights in files]
        logged = -(-chosen.steps // LOG_EVERY) * 19 * (11 + of.outputs)
        files += [file("crosscoders", path, logged) for path in self.map.seeds_of("metrics", name)]
        if not all(done) and not self.sizes.streamed:
            state = self.map.path("state", crosscoder=name, seed=chosen.seeds[0], digest="")
            files.append(file("crosscoders", state, of_training.state(of), stays=False))
        at_most = assumed or not (of.known and self.sizes.exact)
        if self.sizes.streamed:
            jobs = [(of_training.taken(self.sizes, of), each) for each in done]
            return self.line("train", jobs, files, name, at_most=at_most, on_host=True)
        jobs = [(of_training.train(self.sizes, of), each) for each in done]
        return self.line("train", jobs, files, name, threads=chosen.threads, at_most=at_most)

    def streamed(self, stream: str) -> list[tuple[str, int]]:
        """The trainings of a stream, for this bill's dictionaries."""
        return [each for each in streams.trainings(self.map, stream) if each[0] in self.of]

    def stream(self, stream: str) -> Line:
        """Training of the dictionaries that share a stream of rows, in groups."""
        every = self.streamed(stream)
        most = self.settings.activations.together or len(every)
        jobs: list[tuple[Job, bool]] = []
        for start in range(0, len(every), most):
            part = every[start : start + most]
            left = [name for name, seed in part if not streams.made(self.map, name, seed)]
            chosen = [self.of[name] for name in left or [name for name, _ in part]]
            jobs.append((of_training.stream(self.sizes, chosen), not left))
        of = [self.of[name] for name, _ in every]
        at_most = not (self.sizes.exact and all(each.known for each in of))
        threads = max(each.crosscoder.threads for each in of)
        unfinished = [self.of[n] for n, seed in every if not streams.made(self.map, n, seed)]
        size = sum(of_training.state(each) + each.tensors for each in unfinished)  # results wait
        files = [
            file("crosscoders", self.map.path("stream_state", stream=stream), size, stays=False)
        ]
        return self.line("stream", jobs, files, stream, threads=threads, at_most=at_most)


def file(kind: str, path: Path, size: float, stays: bool = True) -> File:
    """A file with the given bytes of data, and how much of it is on disk."""
    return File(kind, path, int(size) + BESIDE, stays, size_of(path))


def size_of(path: Path) -> int:
    """Bytes of a file or of a folder's files; 0 if it does not exist."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    try:
        return path.stat().st_size
    except OSError:
        return 0


def lines(
    experiment: Experiment, here: Machine, count: bool = True, everything: bool = False
) -> tuple[tuple[Line, ...], tuple[str, ...]]:
    """The lines of the default target, or of all possible targets, and notes on them.

    Parameters
    ----------
    count : as for `sizes`.
    """
    made = _Pass(experiment, here, count, everything)
    return tuple(made), tuple(made.notes)


def bill(settings: Settings, results: str | Path, rates: Rates | None = None) -> Bill:
    """The cost of an experiment, without what is on disk already.

    Parameters
    ----------
    settings : steps resolved. results : the folder that holds the experiments' folders.
    rates : from `measure` or machines.table; with a table, its device replaces the one found here.

    Raises
    ------
    InputError : the model's shape cannot be determined, or the settings leave no rows.
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
    known = sizes(experiment, machines.machine(settings, results))
    trained = [dictionary(experiment, known, name) for name in settings.crosscoders_to_train]
    largest = max(trained, key=lambda of: of.F * of.I)
    return machines.measure(experiment, known.model, largest.crosscoder, largest.I)

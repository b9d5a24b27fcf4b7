"""The map of an experiment: the names of its files, where they are, and what reads them.

    experiment = ontogeny.open("results/default")
    experiment.table("features")                    one row per feature, as a DataFrame
    experiment.columns("features")                  descriptions of its columns
    experiment.path("weights", crosscoder="l1")     the path of a file
    experiment.crosscoder()                         the primary dictionary, first seed
    experiment.tokens(), experiment.contexts()      the text; what each feature is active on
    experiment.read("def get(self):")               a text as every snapshot reads it

Opening an experiment reads only its configuration; torch is imported when it is needed. Rules,
commands, costs, the atlas, the summary and `ontogeny show` find everything through this map, and no
other module spells the name of a file that another one reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ontogeny import manifest, registry
from ontogeny import settings as schema
from ontogeny.activations import order
from ontogeny.activations.sites import basis_name, folder_name
from ontogeny.corpus.wheels import wheels_folder
from ontogeny.declarations import Source
from ontogeny.files import InputError, read_json, read_table, reading
from ontogeny.settings import Settings
from ontogeny.snapshots import sources
from ontogeny.snapshots.sizes import leg_ends
from ontogeny.stages import ALWAYS, COMPARED, of_histories

if TYPE_CHECKING:
    import pandas as pd

    from ontogeny.activations.rows import RowPaths
    from ontogeny.corpus.build import Tokens
    from ontogeny.crosscoder.model import Crosscoder
    from ontogeny.features.contexts import Store
    from ontogeny.reading.reading import Reading


class Experiment:
    """One experiment: its settings and all its files.

    Parameters
    ----------
    folder : results/NAME. settings : with the snapshots' steps resolved.
    """

    def __init__(self, folder: str | Path, settings: Settings) -> None:
        self.folder, self.settings = Path(folder), settings

    @classmethod
    def open(cls, folder: str | Path) -> Experiment:
        """The experiment in a folder.

        Raises
        ------
        InputError : there is none, or its configuration is damaged.
        """
        folder = Path(folder)
        path = folder / registry.products()["config"].path
        if not path.exists():
            found = [*folder.glob(f"*/{path.name}")] or [*folder.parent.glob(f"*/{path.name}")]
            names = ", ".join(sorted(p.parent.name for p in found))
            others = f"; in {found[0].parent.parent} there are {names}" if found else ""
            raise InputError(f"{folder}: not the folder of an experiment; name its folder{others}")
        manifest.check(path)
        try:
            return cls(folder, schema.load(path))
        except schema.SettingsError as error:
            line = str(error).splitlines()[0]
            raise InputError(f"{path}: {line}; run the experiment again to restore it") from None

    # What it is

    @property
    def name(self) -> str:
        """Its name, that of its folder."""
        return self.settings.name

    @property
    def results(self) -> Path:
        """The folder that holds the experiments."""
        return self.folder.parent

    @property
    def steps(self) -> list[int]:
        """Training steps of the snapshots, ascending; snapshot index i is that of steps[i − 1]."""
        return self.settings.snapshots.chosen

    @property
    def primary(self) -> str:
        """The crosscoder whose features the figures show."""
        return self.settings.primary

    @cached_property
    def with_histories(self) -> list[str]:
        """The crosscoders whose features have histories."""
        return [name for name in self.settings.crosscoders if self.has_histories(name)]

    @cached_property
    def _dictionaries(self) -> dict[str, schema.Crosscoder]:
        return self.settings.all_crosscoders  # this asks every analysis for its own

    def has_histories(self, crosscoder: str) -> bool:
        """Whether features have histories: trained, over snapshots of one layer and stream."""
        chosen = self._dictionaries[crosscoder]
        one = len(chosen.written.layers) == len(chosen.written.streams) == 1
        return chosen.train_decoder and one and self.compared(crosscoder) >= 2

    def compared(self, crosscoder: str) -> int:
        """Number of snapshots at which a crosscoder's features have a strength."""
        snapshots = self._dictionaries[crosscoder].written.snapshots
        return len(self.steps if snapshots == "all" else snapshots)

    def analyses(self) -> Iterator[str]:
        """The analyses of the default target that are possible for this experiment, in order."""
        for name in self.settings.analyses:
            if self.has_histories(self.primary) or not registry.all_analyses()[name].histories:
                yield name

    def has(self, product: str, reader: str = "") -> bool:
        """Whether the experiment makes a product, by default of the primary crosscoder.

        Parameters
        ----------
        reader : the analysis that asks; its own products exist even if it is not listed.
        """
        if product == "log":
            return self.settings.snapshots.pretrain is not None
        analysis, stage = registry.analysis_of(product), registry.stage_of(product)
        if analysis is None:
            of_features = stage is not None and stage.name == "features"
            return self.has_histories(self.primary) or not of_features
        if analysis.name not in (*self.analyses(), reader):
            return False
        return stage is None or not stage.when or self.value(stage.when) is not None

    def value(self, key: str) -> Any:
        """The value of a dotted key of the settings, as JSON; None if its section is left out."""
        value: Any = self.settings.model_dump(mode="json")
        for part in key.split("."):
            value = None if value is None else value[part]
        return value

    # Paths

    def pattern(self, product: str) -> str:
        """The path of a product, with {crosscoder}, {seed} ... left open."""
        return f"{self.folder}/{registry.product(product).path}"

    def path(self, product: str, **keys: Any) -> Path:
        """The path of a product; by default for the primary crosscoder and its first seed."""
        keys.setdefault("crosscoder", self.primary)
        if "seed" not in keys and keys["crosscoder"] in self._dictionaries:
            keys["seed"] = self._dictionaries[keys["crosscoder"]].seeds[0]
        return Path(self.pattern(product).format(**keys))

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        """Products' names and the patterns of their paths, the most specific first."""
        products = sorted(
            registry.products().values(), key=lambda p: -len(re.sub(r"{\w+}", "", p.path))
        )
        wild = r"(?P<\1>[^/]+)"
        return [
            (product.name, re.compile(re.sub(r"\\{(\w+)\\}", wild, re.escape(product.path))))
            for product in products
        ]

    def identify(self, path: str | Path) -> str:
        """The product and keys of a path in the experiment; the path itself if there is none."""
        if not Path(path).is_relative_to(self.folder):
            return str(path)
        inside = str(Path(path).relative_to(self.folder))
        for name, pattern in self._patterns:
            match = pattern.fullmatch(inside)
            if match:
                return " ".join([name, *(f"{key}={v}" for key, v in match.groupdict().items())])
        return inside

    def seeds_of(self, product: str, crosscoder: str) -> list[Path]:
        """The paths of a product for every seed of a crosscoder, in the seeds' order."""
        seeds = self._dictionaries[crosscoder].seeds
        return [self.path(product, crosscoder=crosscoder, seed=seed) for seed in seeds]

    @property
    def sites(self) -> list[str]:
        """Names of all (layer, stream) pairs whose activations are kept, such as residual.0."""
        kept = self.settings.activations
        return [folder_name(i, stream) for i in kept.layers for stream in kept.streams]

    def sites_of(self, crosscoder: str) -> list[str]:
        """Names of the (layer, stream) pairs that a crosscoder reads and writes, sorted."""
        chosen = self._dictionaries[crosscoder]
        names = {
            folder_name(layer, stream)
            for sites in (chosen.inputs, chosen.outputs)
            if sites is not None
            for layer in sites.layers
            for stream in sites.streams
        }
        return sorted(names)

    def stacks(self, crosscoder: str) -> list[Path]:
        """The stacks of the layers and streams that a crosscoder reads and writes."""
        return [self.path("stack", site=name) for name in self.sites_of(crosscoder)]

    @cached_property
    def shards(self) -> list[range] | list[None]:
        """Windows of each shard of training rows; [None] means a single shard, without a budget.

        Raises
        ------
        InputError : the budget does not hold two windows, or the model's width is not known.
        """
        if self.settings.activations.budget is None:
            return [None]
        width = sources.shape_of(self.settings, self.results).width
        return order.shards(self.settings, width)

    @cached_property
    def legs(self) -> list[int]:
        """Steps at which the jobs of the pre-training end; [] if no model is trained here."""
        pretrain = self.settings.snapshots.pretrain
        return leg_ends(pretrain.steps, self.steps) if pretrain else []

    def mark_of(self, step: int) -> Path:
        """The file that marks that the pre-training has reached a snapshot."""
        return self.path("trained_mark", leg=min(leg for leg in self.legs if leg >= step))

    @property
    def cached(self) -> bool:
        """Whether training rows are on disk, instead of being computed on demand."""
        return self.settings.activations.mode == "cached"

    def table_sources(self, site: Any) -> list[Path]:
        """The files from which the token table of a layer's stream is made."""
        files = [self.path("stack", site=site), self.path("tokens")]
        files += [path for step in self.steps for path in self.rows_of(step, 0, [site])]
        return files + ([] if self.cached else self.source("snapshots").files + self.norms)

    @property
    def norms(self) -> list[Path]:
        """The files with the positions above the bound on the norm, if there is a bound."""
        if self.settings.activations.leave_out_norm is None:
            return []
        return [self.path("norms_of", step=step) for step in self.steps]

    def tables(self, crosscoder: str) -> list[Path]:
        """The token tables of the layers and streams that a crosscoder reads and writes."""
        return [self.path("token_table", site=name) for name in self.sites_of(crosscoder)]

    def rows_of(self, step: Any, shard: Any, sites: Iterable[str]) -> list[Path]:
        """Files of a snapshot's training rows in one shard, if they are on disk."""
        if not self.cached:
            return []
        return [self.path("rows", site=site, step=step, shard=shard) for site in sites]

    def training_rows(self, crosscoder: str, shard: Any = 0) -> list[Path]:
        """The files of training rows that a crosscoder reads, or what they are streamed from."""
        if not self.cached:
            return [*self.source("snapshots").files, self.path("tokens"), *self.norms]
        sites = self.sites_of(crosscoder)
        return [path for step in self.steps for path in self.rows_of(step, shard, sites)]

    def basis_of(self, crosscoder: str) -> str | None:
        """Name of the basis in which a crosscoder is trained; None for all dimensions."""
        chosen = self._dictionaries[crosscoder]
        return basis_name(chosen) if chosen.basis != "full" else None

    def bases(self, crosscoders: Iterable[str]) -> dict[str, str]:
        """The bases of some crosscoders, each with the first crosscoder trained in it."""
        first: dict[str, str] = {}
        for name in crosscoders:
            basis = self.basis_of(name)
            if basis is not None:
                first.setdefault(basis, name)
        return first

    def projected(self, sites: str) -> list[Path]:
        """The files of the rows in a basis, by shard, if rows are on disk."""
        count = len(self.shards) if self.cached else 0
        return [self.path("projected", sites=sites, shard=shard) for shard in range(count)]

    def training_sources(self, crosscoder: str) -> dict[str, list[Path]]:
        """The files on which a crosscoder is trained, and the stacks with the scales."""
        basis, chosen = self.basis_of(crosscoder), self._dictionaries[crosscoder]
        files = {"stacks": self.stacks(crosscoder)} | self.tables_of(crosscoder)
        if basis is not None:
            files["basis"] = [self.path("basis", sites=basis)]
        if basis is not None and self.cached:
            files["projected"] = self.projected(basis)
            if chosen.basis == "principal":
                return files
        return files | {"rows": self.training_rows(crosscoder)}

    def tables_of(self, crosscoder: str) -> dict[str, list[Path]]:
        """The token tables, if the crosscoder has a token table."""
        has = self._dictionaries[crosscoder].token_table
        return {"tables": self.tables(crosscoder)} if has else {}

    def fidelity_sources(self, crosscoder: str) -> dict[str, list[Path]]:
        """The files for a crosscoder's fidelity: the rows, for PCA, and all snapshots."""
        basis = self.basis_of(crosscoder)
        files = {"stacks": self.stacks(crosscoder), "tokens": [self.path("tokens")]}
        files["snapshots"] = self.source("snapshots").files
        files["tables"] = self.tables(crosscoder)
        if basis is not None:
            return files | {"basis": [self.path("basis", sites=basis)]}
        return files | {"rows": self.training_rows(crosscoder)}

    def row_paths(self, crosscoder: str) -> RowPaths:
        """The paths of a crosscoder's rows, for training and fidelity."""
        from ontogeny.activations.rows import RowPaths

        basis = self.basis_of(crosscoder)
        return RowPaths(
            self.path("activations"),
            None if basis is None else self.path("basis", sites=basis),
            () if basis is None else tuple(self.projected(basis)),
            self.path("snapshots"),
            self.path("tokens"),
            self.path("token_tables"),
            self.path("norms"),
        )

    @property
    def wheels(self) -> Path:
        """The folder of the wheels that hold the text, shared by all experiments."""
        return wheels_folder(self.settings.corpus.wheels or schema.Wheels(), self.results)

    @property
    def slots(self) -> Path:
        """The folder by which downloads of all processes are limited."""
        return self.results / "downloads" / "slots"

    def figure(self, name: str, ending: str = "") -> Path:
        """A figure's path, without ending if none is given."""
        return self.path("figures") / (f"{name}.{ending}" if ending else name)

    def figures(self) -> list[str]:
        """The names of the default target's figures, in the order of the report."""
        names = list(ALWAYS)
        if self.has_histories(first := self.primary):
            names += of_histories(self.compared(first), len(self._dictionaries[first].seeds))
        for analysis in self.analyses():
            names += [figure.name for figure in registry.all_analyses()[analysis].figures]
        return names

    def source(self, name: str, crosscoder: str | None = None) -> Source:
        """What a stage reads under a product's name: for the workflow, and for its function.

        Other names: `crosscoder` (the folder of its first seed); `crosscoders`, `densities`
        and `fidelities` (a list, one per seed), `seeds` (their numbers); `held_out_losses` (a
        list, one per snapshot); `activations`, `token_tables` (of its sites) and `snapshots`
        (folders); `baselines` (fidelity of the dictionaries with random directions); `replicates`
        (the products that are compared, by model and name).
        """
        settings, chosen = self.settings, crosscoder or self.primary
        lists = {"densities": "density", "fidelities": "fidelity"}
        if name in lists:
            paths = self.seeds_of(lists[name], chosen)
            return Source(paths, paths)
        if name == "crosscoders":
            return Source(self.seeds_of("weights", chosen), self.seeds_of("trained", chosen))
        if name == "crosscoder":
            weights = self.path("weights", crosscoder=chosen)
            return Source([weights], self.path("trained", crosscoder=chosen))
        if name == "seeds":
            return Source([], settings.crosscoders[chosen].seeds)
        if name == "snapshots":
            return Source([self.path("snapshot", step=s) for s in self.steps], self.path(name))
        if name == "held_out_losses":
            paths = [self.path("held_out_loss", step=step) for step in self.steps]
            return Source(paths, paths)
        if name == "activations":
            return Source(self.stacks(chosen), self.path(name))
        if name == "token_tables":
            return Source(self.tables(chosen), self.path(name))
        if name == "baselines":
            random = [n for n, c in settings.crosscoders.items() if not c.train_decoder]
            paths = [path for n in random for path in self.seeds_of("fidelity", n)]
            return Source(paths, paths)
        if name == "replicates":
            models = {"itself": self}
            for replicate in settings.replicates:
                own = settings.replicate(replicate)
                models[replicate] = Experiment(self.results / own.name, own)
            files = {
                model: {product: experiment.path(product) for product in COMPARED}
                for model, experiment in models.items()
            }
            return Source([own["numbers"] for own in files.values()], files)
        path = self.path(name, crosscoder=chosen)
        return Source([path], path)

    # Contents

    def columns(self, product: str) -> dict[str, str]:
        """Descriptions of a table's columns, with units, in the table's order."""
        return registry.described(product, list(self.table(product).columns))

    def table(self, product: str, crosscoder: str | None = None, **keys: Any) -> pd.DataFrame:
        """A table of the experiment; `columns` describes it.

        Parameters
        ----------
        crosscoder : the primary one if not given. keys : seed, if the product has one.

        Raises
        ------
        InputError : it has not been made yet, or is damaged.
        """
        path = self.path(product, crosscoder=crosscoder or self.primary, **keys)
        manifest.check(path)
        return read_table(path)

    def json(self, product: str, **keys: Any) -> dict[str, Any]:
        """A JSON object of the experiment, such as "levels"; raises as `table`."""
        path = self.path(product, **keys)
        manifest.check(path)
        with reading(path):
            return dict(read_json(path))

    def crosscoder(self, name: str | None = None, seed: int | None = None) -> Crosscoder:
        """A trained crosscoder; by default the primary one, with its first seed.

        Raises
        ------
        InputError : there is none with that name and seed.
        """
        from ontogeny.crosscoder.model import Crosscoder

        return Crosscoder.load(self.trained(name, seed))

    def trained(self, name: str | None = None, seed: int | None = None) -> Path:
        """The folder of a trained crosscoder; as for `crosscoder`."""
        keys = {"crosscoder": name or self.primary} | ({} if seed is None else {"seed": seed})
        if keys["crosscoder"] not in self._dictionaries:
            keys.setdefault("seed", 0)
        folder, weights = self.path("trained", **keys), self.path("weights", **keys)
        if not weights.exists():
            pattern = registry.products()["weights"].path.format(crosscoder="*", seed="*")
            made = [str(p.parent.relative_to(folder.parents[1])) for p in self.folder.glob(pattern)]
            run = f"none yet; `snakemake --cores 2 --configfile {self.path('config')}` trains them"
            there = ", ".join(sorted(made)) or run
            raise InputError(f"{folder}: no crosscoder; there are {there}")
        manifest.check(weights, weights.with_name("config.json"))
        return folder

    def tokens(self) -> Tokens:
        """The tokenised text: `take(blocks)`, `splits`, `context`, `end_of_text`."""
        from ontogeny.corpus.build import Tokens

        manifest.check(self.path("tokens"))
        return Tokens(self.path("tokens"))

    def read(self, text: str, crosscoder: str | None = None, top: int = 5) -> Reading:
        """A text as every snapshot reads it: features, losses and `top` predictions by token.

        Raises InputError if it cannot be read, or if the crosscoder or a snapshot is missing.
        """
        from ontogeny.reading import reading

        name, trained = crosscoder or self.primary, self.crosscoder(crosscoder)
        made = [n for n in ("names", "kinds") if self.path(n, crosscoder=name).exists()]
        tables = {product: self.table(product, name) for product in made}
        places = self.path("snapshots"), self.tokens(), self.path("tokenizer")
        return reading.read(self.settings, trained, *places, tables, text, top)

    def contexts(self, crosscoder: str | None = None) -> Store:
        """What each feature is active on, nearly active on, and which tokens it promotes."""
        from ontogeny.features.contexts import Store

        path = self.path("contexts", crosscoder=crosscoder or self.primary)
        manifest.check(path)
        return Store(path)

    def files(self) -> Iterator[Path]:
        """Every file of the experiment, also below folders that are links to other disks."""
        for folder, _, names in os.walk(self.folder, followlinks=True):
            yield from (Path(folder, name) for name in names)

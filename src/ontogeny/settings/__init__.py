"""The experiment's settings: one typed schema that validates and documents every key.

`load` turns a YAML mapping into `Settings` or raises `SettingsError`, with one line per fault that
names the key and the correction. Nothing here imports torch, so the Snakefile parses fast.

    base.py        the base of every section
    text.py        the keys of the corpus: type, default, description
    sections.py    the core's other keys
    experiment.py  Settings: the core's sections, the analyses' own, a replicate's settings
    faults.py      impossible combinations
    reading.py     YAML, messages, the JSON schema

The keys of an analysis are in its own folder, ontogeny/analyses/NAME/settings.py.
"""

from ontogeny.settings.base import AnalysisSection, Section, SettingsError
from ontogeny.settings.basis import Basis
from ontogeny.settings.experiment import Settings
from ontogeny.settings.reading import load, read, schema
from ontogeny.settings.sections import (
    Activations,
    Analysis,
    Crosscoder,
    Hub,
    Local,
    Pretrain,
    Sites,
    Snapshots,
    Storage,
    Stream,
)
from ontogeny.settings.text import Corpus, Dataset, TextFiles, TokenArray, Wheels

__all__ = [
    "Activations",
    "Analysis",
    "AnalysisSection",
    "Basis",
    "Corpus",
    "Crosscoder",
    "Dataset",
    "Hub",
    "Local",
    "Pretrain",
    "Section",
    "Settings",
    "SettingsError",
    "Sites",
    "Snapshots",
    "Storage",
    "Stream",
    "TextFiles",
    "TokenArray",
    "Wheels",
    "load",
    "read",
    "schema",
]

"""The experiment's settings: one typed schema that validates and documents every key.

`load` turns a YAML mapping into `Settings` or raises `SettingsError`, one line a fault, each naming
the key and the mend. Nothing here imports torch, so that the Snakefile parses fast.

    sections.py    every key: type, default, description
    experiment.py  Settings: the sections together, a replicate's settings
    derived.py     dictionaries that are asked for without being named
    faults.py      impossible combinations
    reading.py     YAML, messages, the JSON schema
"""

from ontogeny.settings.derived import FRONTIER, SAE
from ontogeny.settings.experiment import Settings
from ontogeny.settings.reading import load, read, schema
from ontogeny.settings.sections import (
    Activations,
    Analysis,
    AnalysisName,
    Basis,
    Circuits,
    Contexts,
    Corpus,
    Crosscoder,
    Dataset,
    Frontier,
    Grader,
    Heads,
    Hub,
    Local,
    PresenceTests,
    Pretrain,
    Section,
    SettingsError,
    Sites,
    Snapshots,
    Span,
    Storage,
    Stream,
    TaskName,
    TextFiles,
    TokenArray,
    Wheels,
)

__all__ = [
    "FRONTIER",
    "SAE",
    "Activations",
    "Analysis",
    "AnalysisName",
    "Basis",
    "Circuits",
    "Contexts",
    "Corpus",
    "Crosscoder",
    "Dataset",
    "Frontier",
    "Grader",
    "Heads",
    "Hub",
    "Local",
    "PresenceTests",
    "Pretrain",
    "Section",
    "Settings",
    "SettingsError",
    "Sites",
    "Snapshots",
    "Span",
    "Storage",
    "Stream",
    "TaskName",
    "TextFiles",
    "TokenArray",
    "Wheels",
    "load",
    "read",
    "schema",
]

"""Ontogeny: watch concepts grow inside a language model while it trains.

Each stage of the workflow is a subpackage with one plain function that takes paths and typed
settings; `ontogeny.cli` wraps each in a command, and `rules/` calls those commands.
"""

__version__ = "0.1.0"

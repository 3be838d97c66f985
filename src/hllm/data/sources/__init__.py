"""The known data sets by name. Each module of this package holds the readers of one format.

A module's `SOURCES` lists its data sets. Importing the registry is cheap: table libraries are
loaded when a reader runs.
"""

from __future__ import annotations

import importlib

from hllm.data.sources.spec import Source as Source
from hllm.errors import ConfigError, nearest

MODULES = (
    "movielens",
    "tabular",
    "amazon",
    "bytedance",
    "pixelrec",
    "recbole",
)


def list_sources() -> list[Source]:
    """All known sources, in the order of `hllm data list`."""
    return [source for module in MODULES for source in _module_sources(module)]


def get_source(name: str) -> Source:
    """The source called `name`; families take a variant after a colon (`amazon-2014:Beauty`).

    Raises ConfigError with the nearest name and all valid ones.
    """
    base, colon, variant = name.partition(":")
    known = {source.name: source for source in list_sources()}
    source = known.get(base)
    if source is None or (colon and not source.variant):
        titles = ", ".join(s.title for s in known.values())
        raise ConfigError(f"unknown data set {name!r}{nearest(base, known)}; valid: {titles}")
    return source.with_variant(variant) if source.variant else source


def _module_sources(module: str) -> tuple[Source, ...]:
    sources: tuple[Source, ...] = importlib.import_module(f"{__name__}.{module}").SOURCES
    return sources

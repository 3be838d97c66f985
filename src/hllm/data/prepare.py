"""From a data set's name to a dataset: fetch, read, filter, split, write."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm import artifacts
from hllm.arguments import path as checked_path
from hllm.data.build import DatasetOptions, check_options
from hllm.data.dataset import Dataset
from hllm.data.folder import check_target, is_dataset
from hllm.data.sources import get_source, list_sources
from hllm.data.sources.download import fetch_source
from hllm.errors import ConfigError, unknown

if TYPE_CHECKING:
    from hllm.data.sources.spec import Source
    from hllm.data.tables.schema import Tables


def prepare(
    name: str,
    source_dir: Path | str | None = None,
    out: Path | str | None = None,
    *,
    max_len: int | str | None = None,
    **options: Any,
) -> Dataset:
    """Prepare data set `name` from its raw files and write it to `out` (None: only in memory).

    `source_dir` None fetches the files into the cache first. `options` are those of
    `Dataset.from_tables` (min_interactions, split, seed, ties, ...) and of the reader
    (natural_titles, encoding; for "tabular" interactions, items, user_col, ...); None stands for
    the default. `max_len` (a number or "all"; by default that of the published results, where there
    are any) is written into `dataset.json` as the window to train with; it drops no event.
    What the reader has to say, such as a guessed time unit, is in `meta["notes"]`.

    Raises ConfigError for an unknown name or option, DataError for files that cannot be used,
    FetchError for files that cannot be had, ArtifactError for an `out` that holds something else.
    Nothing that looks finished is left by a failure, and options are checked before any file is
    fetched or read.
    """
    source = get_source(name)
    chosen = {key: value for key, value in options.items() if value is not None}
    for_reader, for_dataset = _sort_options(source, chosen)
    window = source.max_len if max_len is None else _checked_max_len(max_len)
    check_options(for_dataset)
    if source.check:
        _function(source.check)(**for_reader)
    if out is not None:
        check_target(out)
    tables = _read(source, source_dir, for_reader)
    # Formats (tabular, recbole) name no files of their own: there the folder names the dataset.
    title = source.name if source.files or out is None else Path(out).absolute().name
    dataset = Dataset.from_source_tables(tables, name=title, **for_dataset)
    if window is not None:
        dataset.meta["max_len"] = window
    return dataset if out is None else dataset.save(out)


def load_dataset(name_or_path: str | Path, **options: Any) -> Dataset:
    """Open a dataset folder, or the data set of that name: fetched and prepared on first use.

    Data sets by name live in the cache, prepared with the defaults; with `options` (see
    `prepare`) the dataset is made in memory instead. Raises as `prepare` and `Dataset.load` do.
    """
    path = checked_path("name_or_path", name_or_path)
    source = None if is_dataset(path) else _known(str(name_or_path))
    if source is None:
        if options:
            raise ConfigError(f"{path} is no name of a data set; options ({', '.join(options)}) need one")
        return Dataset.load(path)
    if options:
        return prepare(source.name, **options)
    folder = artifacts.home() / "datasets" / source.name.replace(":", "-")
    return Dataset.load(folder) if is_dataset(folder) else prepare(source.name, out=folder)


def _known(name: str) -> Source | None:
    """The source of that name. What looks like a misspelt name, not like a folder, is a ConfigError."""
    try:
        return get_source(name)
    except ConfigError as err:
        if Path(name).exists() or Path(name).name != name:
            return None
        raise ConfigError(f"no dataset folder {name!r} here, and {err}") from err


def reader_options(source: Source) -> list[str]:
    """Options that the reader of a source takes."""
    parameters = inspect.signature(_reader(source)).parameters.values()
    own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return [name for name in own if name not in source.reader_options]


def _read(source: Source, source_dir: Path | str | None, options: dict[str, Any]) -> Tables:
    folder = None if source_dir is None else Path(source_dir)
    if folder is None and source.urls:
        folder = fetch_source(source.name)
    tables: Tables = _reader(source)(folder, **source.reader_options, **options)
    return tables


def _reader(source: Source) -> Any:
    return _function(source.reader)


def _function(name: str) -> Any:
    """The function behind "module:function"."""
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _checked_max_len(value: int | str) -> int | str:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ConfigError(f"max_len={value!r}: must be a whole number of at least 1, or 'all'")


def _sort_options(source: Source, options: dict[str, Any]) -> tuple[dict[str, Any], DatasetOptions]:
    """Options of the reader, and options of the dataset; ConfigError for one of neither."""
    own, general = reader_options(source), list(DatasetOptions.__annotations__)
    for key in options:
        if key in own or key in general:
            continue
        others = [s.title for s in list_sources() if key in reader_options(s)]
        if others:
            hint = "; the k-core of any data set is --min-interactions 5" if key == "filter" else ""
            raise ConfigError(
                f"option {key} does not belong to {source.name}; it is for {', '.join(others)}{hint}"
            )
        raise ConfigError(unknown("option", key, [*general, *own]))
    for_dataset: DatasetOptions = {k: v for k, v in options.items() if k in general}  # type: ignore[assignment]
    return {k: v for k, v in options.items() if k in own}, for_dataset

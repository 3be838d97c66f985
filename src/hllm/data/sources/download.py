"""A known data set's raw files: from its home, or from where else it can be had."""

from __future__ import annotations

import importlib
from pathlib import Path
from urllib.parse import urlsplit

from hllm import artifacts
from hllm.data.reading.files import optional_file
from hllm.data.sources import get_source
from hllm.data.sources.spec import Source
from hllm.errors import ConfigError
from hllm.fetch import fetch, first_of
from hllm.unpack import is_archive, unpack


def fetch_source(name: str, folder: Path | str | None = None, show: bool = True) -> Path:
    """Get the raw files of data set `name` and return their folder.

    The folder is `folder`, or one in the cache. Files that are there are not fetched again, and
    nothing is asked of the network for them. The publisher comes first; FetchError names each
    place that was tried and the way with a local folder.
    """
    source = get_source(name)
    if not source.urls:
        place = f" from {source.page}" if source.files else ""
        raise ConfigError(
            f"{name} has no download: get the files yourself{place} and run "
            f"`hllm data prepare {name} --from DIR --out DATASET`, DIR being their folder"
        )
    target = raw_folder(source) if folder is None else Path(folder)
    if is_complete(source, target):
        return target
    places = [(source.urls[0], lambda: _from_home(source, target, show))]
    if source.fallback:
        places.append((source.fallback_place, lambda: _from_fallback(source, target)))
    files = ", ".join(source.files)
    advice = (
        f"Or get {files} by other means and run `hllm data prepare {name} --from DIR --out DATASET`, "
        "DIR being their folder"
    )
    return first_of(name, places, advice)


def raw_folder(source: Source) -> Path:
    """Where the raw files of a source live in the cache."""
    return artifacts.home() / "raw" / source.name.replace(":", "-")


def is_complete(source: Source, folder: Path) -> bool:
    """Whether every file of the source is in the folder, or one level inside it."""
    return folder.is_dir() and all(optional_file(folder, name) for name in source.files)


def _from_home(source: Source, target: Path, show: bool) -> Path:
    """Download all URLs; archives are kept in the cache and unpacked, other files go to the folder."""
    for url in source.urls:
        checks = {"sha256": source.sha256.get(url), "md5": source.md5.get(url)}
        if is_archive(url):
            unpack(fetch(url, **checks, show=show), target)
        else:
            fetch(url, **checks, dest=target / _place(source, url), show=show)
    return target


def _place(source: Source, url: str) -> str:
    """Where in the folder a downloaded file belongs: as `source.files` has it, else by its own name.

    Files and URLs of a source are in the same order; two of one name lie in different folders.
    """
    name = urlsplit(url).path.rsplit("/", 1)[-1]
    at = source.urls.index(url)
    wanted = source.files[at] if at < len(source.files) else ""
    if Path(wanted).name in (name, name.removesuffix(".gz")):
        return str(Path(wanted).with_name(name))
    return name


def _from_fallback(source: Source, target: Path) -> Path:
    module, function = source.fallback.split(":")
    getattr(importlib.import_module(module), function)(target)
    return target

"""Stores looked after: is what they hold sound, and what in them does no item need."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hllm.errors import ArtifactError
from hllm.items.store.mapped import KeyTable, StoredShard
from hllm.items.store.shards import Store, index_path, locked, read_index, read_spec, remove


@dataclass
class Report:
    """What was found in one store.

    texts     vectors that are sound
    bytes     of its files
    needed    texts of the dataset's items, None where that cannot be told
    missing   of these, how many have no sound vector
    problems  a line each; none where all is well
    """

    folder: Path
    texts: int = 0
    bytes: int = 0
    needed: int | None = None
    missing: int = 0
    problems: list[str] = field(default_factory=list)


def stores_in(root: Path) -> Iterator[Path]:
    """The folders under `root` that hold shards or a specification, by name."""
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.is_dir() and (list(folder.glob("shard-*")) or (folder / "spec.json").is_file()):
            yield folder


def verify(folder: Path, needed: Sequence[bytes] | None, fingerprint: str | None) -> Report:
    """Read every byte of a store; `needed` are the keys of the dataset's items, `fingerprint` of their index."""
    report = Report(folder, bytes=size_of(folder))
    if read_spec(folder) is None:
        report.problems.append(
            "spec.json is missing, damaged or another store's: embed again to write it anew"
        )
    store = Store(folder)
    report.problems += [f"{path.name} is damaged" for path in store.damaged]
    sound: list[StoredShard] = []
    for name, shard in store.shards.items():
        try:
            shard.check()
            sound.append(shard)
        except ArtifactError as err:
            report.problems.append(f"{name}: {str(err).removeprefix(str(folder)).lstrip('/')}")
    report.texts = len(np.unique(np.concatenate([s.keys for s in sound]), axis=0)) if sound else 0
    if needed is not None:
        distinct = list(dict.fromkeys(needed))
        report.needed = len(distinct)
        keys = np.frombuffer(b"".join(distinct), dtype=np.uint8).reshape(-1, 16)
        report.missing = int((KeyTable([shard.keys for shard in sound]).find(keys) < 0).sum())
    if fingerprint is not None and index_path(folder, fingerprint).is_file():
        try:
            read_index(folder, fingerprint)
        except ArtifactError as err:
            report.problems.append(str(err))
    return report


def prune(folder: Path, needed: Sequence[bytes] | None, fingerprint: str | None) -> int:
    """Delete what no item needs: damaged shards and indexes, vectors of texts that are in no item, indexes of other
    catalogues and leftovers; the whole store where nothing of it is needed or no one can tell what it is. Returns the
    bytes freed.

    needed, fingerprint   as of `verify`; None leaves vectors and indexes alone
    """
    before = size_of(folder)
    with locked(folder):
        store = Store(folder)
        for name, shard in list(store.shards.items()):
            try:
                shard.check()
            except ArtifactError:
                del store.shards[name]
                store.damaged.append(folder / name)
        for path in store.damaged:
            remove(path)
        store.damaged.clear()
        if needed is not None:
            kept = KeyTable([np.frombuffer(b"".join(needed), dtype=np.uint8).reshape(-1, 16)])
            surplus = [name for name, shard in store.shards.items() if (kept.find(shard.keys) < 0).any()]
            for name in surplus:  # one by one: at no time more than one shard is in memory
                store.rewrite([name], kept)
        if fingerprint is not None:
            for path in folder.glob("index-*.safetensors"):
                if path != index_path(folder, fingerprint) or not _is_sound(folder, fingerprint):
                    remove(path)
        useless = read_spec(folder) is None or not store.shards
    if useless:
        shutil.rmtree(folder, ignore_errors=True)
    return before - size_of(folder)


def _is_sound(folder: Path, fingerprint: str) -> bool:
    """Whether the index of this catalogue can be read."""
    try:
        read_index(folder, fingerprint)
    except ArtifactError:
        return False
    return True


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, 0 where there is none."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def needs(spec: dict[str, Any], dataset: Any, key_of: Callable[[Any], bytes]) -> list[bytes] | None:
    """Keys of the dataset's items under `spec`; None where a field of it is no column any more.

    key_of  the key of an item's id, for vectors that were brought in
    """
    from hllm.items.store.request import Request
    from hllm.items.store.shards import text_key

    if not spec["fields"]:
        return [key_of(item) for item in dataset.item_ids]
    if any(name not in dataset.items.columns for name in spec["fields"]):
        return None
    return [text_key(text) for text in Request.of(spec).render(dataset.items) if text is not None]

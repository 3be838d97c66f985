"""The embedding store: `embeddings/<key>/`, append-only shards of vectors keyed by their text.

    spec.json                             what the vectors are: model, weights, prompt, fields, pooling, ...
    shard-000000.safetensors              vectors float32 or float16 (n, d), keys uint8 (n, 16), truncated (n,);
                                          checksums of the keys, of blocks of vectors and of the whole
    index-<items fingerprint>.safetensors for one catalogue: the key of each token's text, checksum

A row is found only through the hash of the text it was made from, inside a folder named by the hash
of everything else, so a row of another item, model or prompt cannot be read by mistake, and items may
be reordered, edited or added. A shard is a block of finished batches, in the order of their keys; a
killed process loses at most the block it was working on.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from hllm import artifacts
from hllm.errors import ArtifactError
from hllm.items.store.mapped import KEY_BYTES, KeyTable, StoredShard, block_header

SPEC_FILE = "spec.json"
FORMAT, VERSION = "hllm-embeddings", 1
# What the vectors depend on. The rest of a specification (device, versions, ...) is for the record.
IDENTITY = ("revision", "weights", "prompt", "fields", "pooling", "precision", "max_tokens", "catalogue")
# The same, written only where they are not what they are by default.
OPTIONAL = ("quantize", "own", "template", "clean", "field_tokens", "long_text", "store")
_SHARD = re.compile(r"shard-(\d{6,})\.safetensors")
SMALL_SHARD, LARGE_SHARD = 64 << 20, 256 << 20  # bytes: smaller ones are merged, up to this size


def text_key(text: str) -> bytes:
    """Key (16 bytes) of a text."""
    return hashlib.sha256(text.encode("utf-8")).digest()[:KEY_BYTES]


def spec_key(spec: Mapping[str, Any]) -> str:
    """Name (16 hex digits) of the store that holds embeddings of this specification."""
    model = str(spec["model"])
    # Folders may be moved, also to another system.
    for path in (PurePosixPath(model), PureWindowsPath(model)):
        if path.is_absolute():
            model = path.name
            break
    identity = {"model": model, **{name: spec.get(name) for name in IDENTITY}}
    identity |= {name: spec[name] for name in OPTIONAL if spec.get(name) is not None}
    return artifacts.digest(json.dumps(identity, sort_keys=True))[:16]


def read_spec(folder: Path) -> dict[str, Any] | None:
    """Specification of the store in `folder`; None if it is missing, damaged or another store's.

    It is then written again by the encoding that comes to this folder, whose name it hashes to.
    """
    try:
        spec = artifacts.read_json(folder / SPEC_FILE)
    except ArtifactError:
        return None
    if not isinstance(spec, dict) or spec.get("format") != FORMAT or not {"model", *IDENTITY} <= spec.keys():
        return None
    return spec if spec.get("key") == folder.name == spec_key(spec) else None


def list_specs(root: Path) -> list[dict[str, Any]]:
    """Specifications of the stores under an `embeddings` folder, oldest key first."""
    specs = [read_spec(path.parent) for path in sorted(root.glob(f"*/{SPEC_FILE}"))]
    return [spec for spec in specs if spec is not None]


@dataclass(frozen=True)
class Shard:
    """Vectors (n, d) of n texts, their keys uint8 (n, 16), and whether each text was truncated, bool (n,)."""

    vectors: np.ndarray
    keys: np.ndarray
    truncated: np.ndarray


def join(shards: Sequence[Shard]) -> Shard:
    """One shard of several, in the order of the keys, so that its bytes do not tell how it came about."""
    keys = np.concatenate([shard.keys for shard in shards])
    order = KeyTable([keys]).order
    vectors = np.concatenate([shard.vectors for shard in shards])[order]
    truncated = np.concatenate([shard.truncated for shard in shards])[order]
    return Shard(vectors, keys[order], truncated)


class Store:
    """One store: vectors of texts, by the texts' keys. Large ones are mapped, not read (mapped.py).

    The writing methods are to be used inside `locked(folder)` only, after `refresh`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[str, StoredShard] = {}
        self.damaged: list[Path] = []
        self.next_number = 0
        self.refresh()

    @property
    def dim(self) -> int | None:
        """Width of the vectors; None while there are none."""
        return next((shard.vectors.shape[1] for shard in self.shards.values()), None)

    @property
    def dtype(self) -> np.dtype:
        """float16 where all vectors are kept in it, else float32."""
        halves = all(shard.vectors.dtype == np.float16 for shard in self.shards.values())
        return np.dtype(np.float16 if halves and self.shards else np.float32)

    def refresh(self) -> None:
        """Open what other processes wrote since, forget what they merged."""
        found = {
            path.name: path for path in sorted(self.folder.glob("shard-*")) if _SHARD.fullmatch(path.name)
        }
        self.next_number = 1 + max((_number(name) for name in found), default=-1)
        known = {name: shard for name, shard in self.shards.items() if name in found}
        self.shards, self.damaged = {}, []
        for name, path in found.items():
            try:
                self._add(name, known.get(name) or StoredShard(path, self.folder.name))
            except ArtifactError:
                self.damaged.append(path)

    def _add(self, name: str, shard: StoredShard) -> None:
        if self.dim not in (None, shard.vectors.shape[1]):
            raise ArtifactError(f"{name} in {self.folder} has vectors of another width than the other shards")
        self.shards[name] = shard
        self._table = None

    _table: tuple[KeyTable, np.ndarray] | None = None

    def _lookup(self) -> tuple[KeyTable, np.ndarray]:
        """The table of all keys, and where each shard begins among the places it gives."""
        if self._table is None:
            shards = list(self.shards.values())
            starts = np.cumsum([0, *map(len, shards)])
            self._table = KeyTable([shard.keys for shard in shards]), starts
        return self._table

    def find(self, keys: Sequence[bytes] | np.ndarray) -> np.ndarray:
        """Place int64 (m,) of each text in the store, for `read` and `truncated`; -1 where it is missing."""
        return self._lookup()[0].find(key_array(keys))

    def keys(self) -> set[bytes]:
        """The keys of all texts."""
        return {key.tobytes() for shard in self.shards.values() for key in shard.keys}

    def read(self, places: np.ndarray) -> np.ndarray:
        """Vectors float32 (m, d) at `places` int64 (m,) of `find`."""
        out = np.zeros((len(places), self.dim or 0), dtype=np.float32)
        for shard, here, rows in self._by_shard(places):
            out[here] = shard.read(rows)
        return out

    def truncated(self, places: np.ndarray) -> np.ndarray:
        """bool (m,): whether the texts at `places` were cut."""
        out = np.zeros(len(places), dtype=bool)
        for shard, here, rows in self._by_shard(places):
            out[here] = shard.truncated[rows]
        return out

    def _by_shard(self, places: np.ndarray) -> Iterator[tuple[StoredShard, np.ndarray, np.ndarray]]:
        """Each shard that holds some of `places`, which of them, and their rows there."""
        starts = self._lookup()[1]
        owner = np.searchsorted(starts, places, side="right") - 1
        for i, shard in enumerate(self.shards.values()):
            here = np.flatnonzero(owner == i)
            if len(here):
                yield shard, here, places[here] - starts[i]

    def take(self, keys: Sequence[bytes] | np.ndarray) -> Shard:
        """The rows of these texts, which must all be in the store, in their order and in the store's precision."""
        places = self.find(keys)
        if (places < 0).any():
            raise KeyError(f"{int((places < 0).sum())} texts are not in {self.folder}")
        vectors = self.read(places).astype(self.dtype, copy=False)
        return Shard(vectors, key_array(keys), self.truncated(places))

    def append(self, shard: Shard) -> None:
        """Write one block."""
        name = f"shard-{self.next_number:06d}.safetensors"
        arrays = write_shard(self.folder / name, self.folder.name, shard)
        self.next_number += 1
        self._add(name, StoredShard(self.folder / name, self.folder.name, arrays))

    def drop_damaged(self) -> bool:
        """Delete shards that cannot be trusted, with a warning; their texts count as missing. True if any."""
        dropped = bool(self.damaged)
        for path in self.damaged:
            warnings.warn(
                f"{path.name} in {self.folder} is damaged; its items are encoded again", stacklevel=2
            )
            remove(path)
        self.damaged.clear()
        return dropped

    def compact(self) -> None:
        """Merge small shards. The merged one is written first, so that at no time a row is missing."""
        small = [name for name, shard in self.shards.items() if shard.vectors.nbytes < SMALL_SHARD]
        if len(small) < 2:
            return
        for group in _groups(small, self.shards):
            self.rewrite(group)

    def rewrite(self, names: Collection[str], kept: KeyTable | None = None) -> None:
        """Put one shard in the place of those `names`: their texts, of `kept` alone, that are in no other shard."""
        others = KeyTable([shard.keys for name, shard in self.shards.items() if name not in names])
        keys = np.unique(np.concatenate([self.shards[name].keys for name in names]), axis=0)
        wanted = others.find(keys) < 0
        if kept is not None:
            wanted &= kept.find(keys) >= 0
        if wanted.any():
            self.append(self.take(keys[wanted]))
        for name in names:
            del self.shards[name]  # no longer mapped
            remove(self.folder / name)
        self._table = None

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Write spec.json unless it is there and sound; then only note where the model is now."""
        known = read_spec(self.folder)
        if known is None:
            known = {"format": FORMAT, "version": VERSION, **spec}
        elif known["model"] == spec["model"] and known.get("dim") == spec["dim"]:
            return
        artifacts.write_json(self.folder / SPEC_FILE, {**known, "model": spec["model"], "dim": spec["dim"]})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only writer of a store; ArtifactError names the other one. The lock dies with its process."""
    with artifacts.locked(folder):
        for leftover in folder.glob(".*.tmp"):  # of a process that was killed while writing
            remove(leftover)
        yield


def write_shard(path: Path, spec: str, shard: Shard) -> dict[str, np.ndarray]:
    """Write a shard of the store named `spec`, with checksums over its contents; returns these."""
    import torch

    half = shard.vectors.dtype == np.float16
    arrays = {
        "vectors": np.ascontiguousarray(shard.vectors, dtype=np.float16 if half else np.float32),
        "keys": np.ascontiguousarray(shard.keys, dtype=np.uint8),
        "truncated": np.ascontiguousarray(shard.truncated, dtype=np.uint8),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    artifacts.write_tensors(path, tensors, {"spec": spec, **block_header(**arrays)})
    return arrays


def index_path(folder: Path, items_fingerprint: str) -> Path:
    """Where a catalogue's index is; it is there only once all its items are encoded."""
    return folder / f"index-{items_fingerprint}.safetensors"


def write_index(folder: Path, items_fingerprint: str, keys: Sequence[bytes | None]) -> None:
    """Write the text key of every item of a catalogue in token order (None: no text)."""
    import torch

    arrays = {
        "keys": key_array([key or bytes(KEY_BYTES) for key in keys]),
        "has_text": np.array([key is not None for key in keys], dtype=bool),
    }
    header = {"items": items_fingerprint, "sha256": artifacts.digest(*arrays.values())}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with locked(folder):  # else another writer removes the file while it is written
        artifacts.write_tensors(index_path(folder, items_fingerprint), tensors, header)


def read_index(folder: Path, items_fingerprint: str) -> tuple[np.ndarray, np.ndarray]:
    """Keys uint8 (n, 16) and has_text bool (n,) that `write_index` wrote; ArtifactError if they are damaged or
    another catalogue's. Indexes of hllm 0.1.0 have no header."""
    path = index_path(folder, items_fingerprint)
    try:
        tensors, header = artifacts.read_tensors(path)
        arrays = [tensors[name].numpy() for name in ("keys", "has_text") if name in tensors]
        told = {"items": items_fingerprint, "sha256": artifacts.digest(*arrays)}
        if len(arrays) < 2 or arrays[0].shape != (len(arrays[1]), KEY_BYTES):
            raise ArtifactError(f"{path} is damaged: its tables do not fit together")
        if header and any(header.get(name) != value for name, value in told.items()):
            raise ArtifactError(f"{path} is damaged, or does not belong here")
    except ArtifactError as err:
        raise ArtifactError(f"{err}; run `hllm embed` again with the same options to write it anew") from err
    return arrays[0], arrays[1].astype(bool)


def _number(name: str) -> int:
    found = _SHARD.fullmatch(name)
    return int(found[1]) if found else -1


def remove(path: Path) -> None:
    with suppress(OSError):  # a file that cannot be removed now is in nobody's way
        path.unlink(missing_ok=True)


def key_array(keys: Sequence[bytes] | np.ndarray) -> np.ndarray:
    """Keys as uint8 (n, 16)."""
    if isinstance(keys, np.ndarray):
        return keys
    return np.frombuffer(bytearray().join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)


def _groups(names: Sequence[str], shards: Mapping[str, StoredShard]) -> list[set[str]]:
    """Consecutive shards of together at most LARGE_SHARD bytes."""
    groups: list[set[str]] = [set()]
    size = 0
    for name in names:
        if groups[-1] and size + shards[name].vectors.nbytes > LARGE_SHARD:
            groups.append(set())
            size = 0
        groups[-1].add(name)
        size += shards[name].vectors.nbytes
    return groups

"""The embedding store: `embeddings/<key>/`, append-only shards of vectors keyed by their text.

    spec.json                             what the vectors are: model, weights, prompt, fields, pooling, ...
    shard-000000.safetensors              vectors float32 (n, d), keys uint8 (n, 16), truncated (n,), checksum
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from hllm import artifacts
from hllm.errors import ArtifactError

KEY_BYTES = 16
SPEC_FILE = "spec.json"
FORMAT, VERSION = "hllm-embeddings", 1
# What the vectors depend on. The rest of a specification (device, versions, ...) is for the record.
IDENTITY = ("revision", "weights", "prompt", "fields", "pooling", "precision", "max_tokens", "catalogue")
# The same, written only where they are not what they are by default.
OPTIONAL = ("quantize", "own", "template", "clean", "field_tokens", "long_text")
_SHARD = re.compile(r"shard-(\d{6,})\.safetensors")
SMALL_SHARD, LARGE_SHARD = 64 << 20, 256 << 20  # bytes: smaller ones are merged, up to this size


def text_key(text: str) -> bytes:
    """Key (16 bytes) of a text."""
    return hashlib.sha256(text.encode("utf-8")).digest()[:KEY_BYTES]


def spec_key(spec: Mapping[str, Any]) -> str:
    """Name (16 hex digits) of the store that holds embeddings of this specification."""
    model = str(spec["model"])
    for path in (
        PurePosixPath(model),
        PureWindowsPath(model),
    ):  # folders may be moved, also to another system
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
    """Vectors float32 (n, d) of n texts, their keys, and whether each text was truncated."""

    vectors: np.ndarray
    keys: list[bytes]
    truncated: np.ndarray


def join(shards: Sequence[Shard]) -> Shard:
    """One shard of several, in the order of the keys, so that its bytes do not tell how it came about."""
    keys = [key for shard in shards for key in shard.keys]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    vectors = np.concatenate([shard.vectors for shard in shards])[order]
    truncated = np.concatenate([shard.truncated for shard in shards])[order]
    return Shard(vectors, [keys[i] for i in order], truncated)


class Store:
    """One store, read into memory: `rows[key]` is the (shard, row) of the text with that key.

    The writing methods are to be used inside `locked(folder)` only, after `refresh`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[str, Shard] = {}
        self.rows: dict[bytes, tuple[str, int]] = {}
        self.damaged: list[Path] = []
        self.next_number = 0
        self.refresh()

    @property
    def dim(self) -> int | None:
        """Width of the vectors; None while there are none."""
        return next((shard.vectors.shape[1] for shard in self.shards.values()), None)

    def refresh(self) -> None:
        """Read what other processes wrote since, forget what they merged."""
        found = {
            path.name: path for path in sorted(self.folder.glob("shard-*")) if _SHARD.fullmatch(path.name)
        }
        self.next_number = 1 + max((_number(name) for name in found), default=-1)
        known = {name: shard for name, shard in self.shards.items() if name in found}
        self.shards, self.rows, self.damaged = {}, {}, []
        for name, path in found.items():
            try:
                self._add(name, known.get(name) or read_shard(path, self.folder.name))
            except ArtifactError:
                self.damaged.append(path)

    def _add(self, name: str, shard: Shard) -> None:
        if self.dim not in (None, shard.vectors.shape[1]):
            raise ArtifactError(f"{name} in {self.folder} has vectors of another width than the other shards")
        self.shards[name] = shard
        self.rows.update((key, (name, i)) for i, key in enumerate(shard.keys))

    def take(self, keys: Sequence[bytes]) -> Shard:
        """The rows of these texts, which must all be in the store, in their order."""
        number = {name: i for i, name in enumerate(self.shards)}
        places = [(number[name], row) for name, row in map(self.rows.__getitem__, keys)]
        shard_of, row_of = np.array(places, dtype=np.int64).reshape(-1, 2).T
        vectors = np.zeros((len(keys), self.dim or 0), dtype=np.float32)
        truncated = np.zeros(len(keys), dtype=bool)
        for i, shard in enumerate(self.shards.values()):
            here = shard_of == i
            vectors[here], truncated[here] = shard.vectors[row_of[here]], shard.truncated[row_of[here]]
        return Shard(vectors, list(keys), truncated)

    def append(self, shard: Shard) -> None:
        """Write one block."""
        name = f"shard-{self.next_number:06d}.safetensors"
        write_shard(self.folder / name, self.folder.name, shard)
        self.next_number += 1
        self._add(name, shard)

    def drop_damaged(self) -> bool:
        """Delete shards that cannot be trusted, with a warning; their texts count as missing. True if any."""
        dropped = bool(self.damaged)
        for path in self.damaged:
            warnings.warn(
                f"{path.name} in {self.folder} is damaged; its items are encoded again", stacklevel=2
            )
            _remove(path)
        self.damaged.clear()
        return dropped

    def compact(self) -> None:
        """Merge small shards. The merged one is written first, so that at no time a row is missing."""
        small = [name for name, shard in self.shards.items() if shard.vectors.nbytes < SMALL_SHARD]
        if len(small) < 2:
            return
        for group in _groups(small, self.shards):
            keys = sorted(key for key, (name, _) in self.rows.items() if name in group)
            if keys:
                self.append(self.take(keys))
            for name in group:
                _remove(self.folder / name)
                del self.shards[name]

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
            _remove(leftover)
        yield


def write_shard(path: Path, spec: str, shard: Shard) -> None:
    """Write a shard of the store named `spec`, with a checksum over its contents."""
    arrays = {
        "vectors": np.ascontiguousarray(shard.vectors, dtype=np.float32),
        "keys": _key_array(shard.keys),
        "truncated": np.ascontiguousarray(shard.truncated, dtype=np.uint8),
    }
    _write(path, arrays, spec=spec)


def read_shard(path: Path, spec: str) -> Shard:
    """Read a shard; ArtifactError if it is damaged or belongs to another specification than `spec`."""
    vectors, keys, truncated = _checked(path, ("vectors", "keys", "truncated"), spec=spec)
    if vectors.ndim != 2 or keys.shape != (len(vectors), KEY_BYTES) or truncated.shape != (len(vectors),):
        raise ArtifactError(f"{path} is damaged: its tables do not fit together")
    return Shard(vectors, [key.tobytes() for key in keys], truncated.astype(bool))


def index_path(folder: Path, items_fingerprint: str) -> Path:
    """Where a catalogue's index is; it is there only once all its items are encoded."""
    return folder / f"index-{items_fingerprint}.safetensors"


def write_index(folder: Path, items_fingerprint: str, keys: Sequence[bytes | None]) -> None:
    """Write the text key of every item of a catalogue in token order (None: no text)."""
    arrays = {
        "keys": _key_array([key or bytes(KEY_BYTES) for key in keys]),
        "has_text": np.array([key is not None for key in keys], dtype=bool),
    }
    _write(index_path(folder, items_fingerprint), arrays, items=items_fingerprint)


def read_index(folder: Path, items_fingerprint: str) -> list[bytes | None]:
    """The text keys that `write_index` wrote; ArtifactError if they are damaged or another catalogue's."""
    path = index_path(folder, items_fingerprint)
    try:
        keys, has_text = _checked(path, ("keys", "has_text"), items=items_fingerprint)
        if keys.shape != (len(has_text), KEY_BYTES):
            raise ArtifactError(f"{path} is damaged: its tables do not fit together")
    except ArtifactError as err:
        raise ArtifactError(f"{err}; run `hllm embed` again with the same options to write it anew") from err
    return [key.tobytes() if there else None for key, there in zip(keys, has_text.tolist(), strict=True)]


def _write(path: Path, arrays: Mapping[str, np.ndarray], **header: str) -> None:
    import torch

    header["sha256"] = artifacts.digest(*arrays.values())
    artifacts.write_tensors(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, header)


def _checked(path: Path, names: Sequence[str], **expected: str) -> list[np.ndarray]:
    """The arrays `names` of a file; ArtifactError if its header or checksum is not as `expected`.

    Indexes of hllm 0.1.0 have no header. Arrays are copies: a mapped file could not be replaced on Windows.
    """
    tensors, header = artifacts.read_tensors(path)
    arrays = [tensors[name].numpy().copy() for name in names if name in tensors]
    if len(arrays) == len(names) and not header and "items" in expected:
        return arrays
    if any(header.get(k) != v for k, v in (expected | {"sha256": artifacts.digest(*arrays)}).items()):
        raise ArtifactError(f"{path} is damaged, or does not belong here")
    return arrays


def _number(name: str) -> int:
    found = _SHARD.fullmatch(name)
    return int(found[1]) if found else -1


def _remove(path: Path) -> None:
    with suppress(OSError):  # a file that cannot be removed now is in nobody's way
        path.unlink(missing_ok=True)


def _key_array(keys: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(bytearray().join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)


def _groups(names: Sequence[str], shards: Mapping[str, Shard]) -> list[set[str]]:
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

"""The embedding store: `embeddings/<key>/`, append-only shards of vectors keyed by their text.

    spec.json                             what the vectors are: model, weights, prompt, fields, pooling, ...
    shard-000000.safetensors              vectors float32 (n, d), keys uint8 (n, 16), truncated (n,), checksum
    index-<items fingerprint>.safetensors for one catalogue: the key of each token's text

A row is found only through the hash of the text it was made from, inside a folder named by the hash
of everything else, so a row of another item, model or prompt cannot be read by mistake, and items may
be reordered, edited or added. Every shard is one finished batch; a killed process loses at most the
batch it was working on.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hllm import artifacts
from hllm.errors import ArtifactError
from hllm.items.encoders.names import is_local

KEY_BYTES = 16
SPEC_FILE = "spec.json"
FORMAT, VERSION = "hllm-embeddings", 1
# What the vectors depend on. The rest of a specification (device, versions, ...) is for the record.
IDENTITY = ("revision", "weights", "prompt", "fields", "pooling", "precision", "max_tokens", "catalogue")
SMALL_SHARD, LARGE_SHARD = 64 << 20, 256 << 20  # bytes: smaller ones are merged, up to this size


def text_key(text: str) -> bytes:
    """Key (16 bytes) of a text."""
    return hashlib.sha256(text.encode("utf-8")).digest()[:KEY_BYTES]


def spec_key(spec: Mapping[str, Any]) -> str:
    """Name (16 hex digits) of the store that holds embeddings of this specification."""
    model = Path(spec["model"]).name if is_local(spec["model"]) else spec["model"]  # folders may be moved
    identity = {"model": model, **{name: spec.get(name) for name in IDENTITY}}
    return artifacts.digest(json.dumps(identity, sort_keys=True))[:16]


def list_specs(root: Path) -> list[dict[str, Any]]:
    """Specifications of the stores under an `embeddings` folder, oldest key first."""
    specs = [artifacts.read_json(path) for path in sorted(root.glob(f"*/{SPEC_FILE}"))]
    return [spec for spec in specs if isinstance(spec, dict) and spec.get("format") == FORMAT]


@dataclass(frozen=True)
class Shard:
    """Vectors float32 (n, d) of n texts, their keys, and whether each text was truncated."""

    vectors: np.ndarray
    keys: list[bytes]
    truncated: np.ndarray


class Store:
    """One store, read into memory: `rows[key]` is the (shard, row) of the text with that key.

    The writing methods are to be used inside `locked(folder)` only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[str, Shard] = {}
        self.rows: dict[bytes, tuple[str, int]] = {}
        self.damaged: list[Path] = []
        paths = sorted(folder.glob("shard-*.safetensors"))
        self.next_number = 1 + max((int(p.stem.split("-")[1]) for p in paths), default=-1)
        for path in paths:
            try:
                self._add(path.name, read_shard(path, folder.name))
            except ArtifactError:
                self.damaged.append(path)

    def _add(self, name: str, shard: Shard) -> None:
        self.shards[name] = shard
        self.rows.update((key, (name, i)) for i, key in enumerate(shard.keys))

    def vectors(self, keys: Sequence[bytes]) -> np.ndarray:
        """Vectors float32 (n, d) of n >= 1 texts that are all in the store."""
        return np.stack([self.shards[name].vectors[i] for name, i in map(self.rows.__getitem__, keys)])

    def truncated(self, keys: Iterable[bytes]) -> np.ndarray:
        """Whether each of these texts was truncated, bool (n,)."""
        return np.array(
            [self.shards[name].truncated[i] for name, i in map(self.rows.__getitem__, keys)], dtype=bool
        )

    def append(self, shard: Shard) -> None:
        """Write one batch."""
        name = f"shard-{self.next_number:06d}.safetensors"
        write_shard(self.folder / name, self.folder.name, shard)
        self.next_number += 1
        self._add(name, shard)

    def drop_damaged(self) -> None:
        """Delete shards that cannot be trusted, with a warning; their texts count as missing."""
        for path in self.damaged:
            warnings.warn(
                f"{path.name} in {self.folder} is damaged; its items are encoded again", stacklevel=2
            )
            path.unlink(missing_ok=True)
        self.damaged.clear()

    def compact(self) -> None:
        """Merge small shards. The merged one is written first, so that at no time a row is missing."""
        small = [name for name, shard in self.shards.items() if shard.vectors.nbytes < SMALL_SHARD]
        if len(small) < 2:
            return
        for group in _groups(small, self.shards):
            keys = sorted(key for key, (name, _) in self.rows.items() if name in group)
            if keys:
                self.append(Shard(self.vectors(keys), keys, self.truncated(keys)))
            for name in group:
                (self.folder / name).unlink(missing_ok=True)
                del self.shards[name]

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Write spec.json unless it is there; then only note where the model is now."""
        path = self.folder / SPEC_FILE
        if not path.is_file():
            artifacts.write_json(path, {"format": FORMAT, "version": VERSION, **spec})
        elif (known := artifacts.read_json(path))["model"] != spec["model"]:
            artifacts.write_json(path, {**known, "model": spec["model"]})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only writer of a store; ArtifactError names the other one. The lock dies with its process."""
    with artifacts.locked(folder):
        for leftover in folder.glob(".*.tmp"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        yield


def write_shard(path: Path, spec: str, shard: Shard) -> None:
    """Write a shard of the store named `spec`, with a checksum over its contents."""
    import torch

    arrays = {
        "vectors": np.ascontiguousarray(shard.vectors, dtype=np.float32),
        "keys": _key_array(shard.keys),
        "truncated": np.ascontiguousarray(shard.truncated, dtype=np.uint8),
    }
    header = {"spec": spec, "sha256": artifacts.digest(*arrays.values())}
    artifacts.write_tensors(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, header)


def read_shard(path: Path, spec: str) -> Shard:
    """Read a shard; ArtifactError if it is damaged or belongs to another specification than `spec`."""
    tensors, header = artifacts.read_tensors(path)
    arrays = [tensors[name].numpy() for name in ("vectors", "keys", "truncated") if name in tensors]
    if header.get("spec") != spec or header.get("sha256") != artifacts.digest(*arrays):
        raise ArtifactError(f"{path} is damaged, or of another store")
    vectors, keys, truncated = arrays
    return Shard(vectors, [key.tobytes() for key in keys], truncated.astype(bool))


def index_path(folder: Path, items_fingerprint: str) -> Path:
    """Where a catalogue's index is; it is there only once all its items are encoded."""
    return folder / f"index-{items_fingerprint}.safetensors"


def write_index(folder: Path, items_fingerprint: str, keys: Sequence[bytes | None]) -> None:
    """Write the text key of every item of a catalogue in token order (None: no text)."""
    import torch

    tensors = {
        "keys": torch.from_numpy(_key_array([key or bytes(KEY_BYTES) for key in keys])),
        "has_text": torch.tensor([key is not None for key in keys]),
    }
    artifacts.write_tensors(index_path(folder, items_fingerprint), tensors)


def read_index(folder: Path, items_fingerprint: str) -> list[bytes | None]:
    """The text keys that `write_index` wrote."""
    tensors, _ = artifacts.read_tensors(index_path(folder, items_fingerprint))
    pairs = zip(tensors["keys"].numpy(), tensors["has_text"].tolist(), strict=True)
    return [key.tobytes() if has_text else None for key, has_text in pairs]


def _key_array(keys: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(bytearray().join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)


def _groups(names: Sequence[str], shards: Mapping[str, Shard]) -> list[list[str]]:
    """Consecutive shards of together at most LARGE_SHARD bytes."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in names:
        if groups[-1] and size + shards[name].vectors.nbytes > LARGE_SHARD:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += shards[name].vectors.nbytes
    return groups

"""Reading a store that need not fit into memory: shards mapped from the disk, keys found by bisection.

A small shard is read and checked whole when it is opened. Of a large one only the keys are; its vectors are
mapped, and each block of them is checked when one of its rows is first read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hllm import artifacts
from hllm.errors import ArtifactError

KEY_BYTES = 16
NAMES = ("vectors", "keys", "truncated")
WHOLE = 16 << 20  # bytes of a shard that is read at once
CHECKED = 1 << 20  # bytes of vectors under one checksum
_HEX = 16  # digits of a block's checksum


def block_header(vectors: np.ndarray, keys: np.ndarray, truncated: np.ndarray) -> dict[str, Any]:
    """What a shard's header says for reading it in parts: rows of a block, checksums of keys and of blocks."""
    rows = max(1, CHECKED // max(vectors[:1].nbytes, 1))
    blocks = [
        artifacts.digest(vectors[first : first + rows])[:_HEX] for first in range(0, len(vectors), rows)
    ]
    return {"rows": rows, "keys": artifacts.digest(keys, truncated), "blocks": "".join(blocks)}


class StoredShard:
    """One shard on the disk.

    keys       uint8 (n, 16)
    truncated  bool (n,)
    vectors    float32 or float16 (n, d), in memory or mapped

    written  what was just written to it, which need not be read again

    Raises ArtifactError for a file that is damaged or of another store than `spec`.
    """

    def __init__(self, path: Path, spec: str, written: Mapping[str, np.ndarray] | None = None) -> None:
        self.path = path
        self.unchecked: np.ndarray | None = None  # bool: blocks that were not read yet
        header = artifacts.read_metadata(path)
        if header.get("spec") != spec:
            raise ArtifactError(f"{path} does not belong here")
        arrays: Mapping[str, np.ndarray]
        if path.stat().st_size <= WHOLE or "blocks" not in header:
            arrays = _whole(path) if written is None else written
        else:
            arrays = artifacts.map_tensors(path)
            self.header = header
        missing = [name for name in NAMES if name not in arrays]
        if missing:
            raise ArtifactError(f"{path} is damaged: it has no {missing[0]}")
        self.vectors, self.keys, truncated = (arrays[name] for name in NAMES)
        n = len(self.vectors)
        if self.vectors.ndim != 2 or self.keys.shape != (n, KEY_BYTES) or truncated.shape != (n,):
            raise ArtifactError(f"{path} is damaged: its tables do not fit together")
        if isinstance(self.vectors, np.memmap):
            if header["keys"] != artifacts.digest(self.keys, truncated):
                raise ArtifactError(f"{path} is damaged: its keys are not those of its header")
            self.unchecked = np.ones(-(-n // header["rows"]), dtype=bool)
        self.truncated = truncated.astype(bool)

    def __len__(self) -> int:
        return len(self.vectors)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Vectors float32 (m, d) of `rows` int64 (m,); ArtifactError if their block is damaged."""
        if self.unchecked is not None:
            size = self.header["rows"]
            blocks = np.unique(rows // size)
            for block in blocks[self.unchecked[blocks]].tolist():
                found = artifacts.digest(self.vectors[block * size : (block + 1) * size])[:_HEX]
                if found != self.header["blocks"][block * _HEX : (block + 1) * _HEX]:
                    raise ArtifactError(
                        f"{self.path} is damaged; run: hllm embed DATASET --prune, then embed again"
                    )
                self.unchecked[block] = False
        return np.asarray(self.vectors[rows], dtype=np.float32)

    def check(self) -> None:
        """Read everything; ArtifactError if it is damaged, or a number is not finite."""
        vectors = _whole(self.path)["vectors"]
        if not np.isfinite(vectors).all():
            raise ArtifactError(f"{self.path} holds NaN or infinity")


def _whole(path: Path) -> dict[str, np.ndarray]:
    """Everything in a shard as copies, checked by its digest, or that of an earlier hllm."""
    tensors, header = artifacts.read_tensors(path)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    if "blocks" not in header and header.get("sha256") != artifacts.digest(
        *(arrays[name] for name in NAMES if name in arrays)
    ):
        raise ArtifactError(f"{path} is damaged")
    return arrays


class KeyTable:
    """Where keys uint8 (n, 16) stand, found for many at once."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        halves = np.concatenate([_halves(part) for part in parts] or [np.zeros((0, 2), dtype=np.uint64)])
        self.order = np.lexsort((halves[:, 1], halves[:, 0]))
        self.first, self.second = halves[self.order, 0], halves[self.order, 1]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Place int64 (m,) of each of `keys` uint8 (m, 16); -1 for one that is not there."""
        first, second = _halves(keys).T
        at, places = np.searchsorted(self.first, first), np.full(len(keys), -1, dtype=np.int64)
        left = np.arange(len(keys))
        while len(left):  # as often as keys share their first half: once
            there = at[left] < len(self.first)
            left = left[there]
            left = left[self.first[at[left]] == first[left]]
            found = self.second[at[left]] == second[left]
            places[left[found]] = self.order[at[left[found]]]
            left = left[~found]
            at[left] += 1
        return places


def _halves(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys).view(">u8").astype(np.uint64).reshape(-1, 2)


class StoredVectors:
    """Vectors float32 (n + 1, d) of a catalogue, read from a store when they are indexed, never as a whole.

    Like a numpy array: `shape`, `dtype`, `len`, and rows by number, slice, numbers or mask.
    """

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, read: Any, places: np.ndarray, dim: int) -> None:
        self._read, self._places, self.shape = read, places, (len(places), dim)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    def __getitem__(self, rows: Any) -> np.ndarray:
        places = self._places[rows]
        one = np.ndim(places) == 0
        places = np.atleast_1d(places)
        out = np.zeros((len(places), self.shape[1]), dtype=np.float32)
        there = places >= 0
        out[there] = self._read(places[there])
        return out[0] if one else out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

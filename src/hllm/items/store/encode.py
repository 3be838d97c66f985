"""The one loop that encodes texts and stores their vectors; those that are not finite are refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm import artifacts, hardware
from hllm.engine import spread
from hllm.errors import DataError
from hllm.items.encoders.base import Tokenising
from hllm.items.store.batches import Chunks, one_ahead, over_ranks, planned_batches
from hllm.items.store.shards import Shard, Store, join, key_array, locked, spec_key
from hllm.progress import progress, rate_text
from hllm.ranks import now

if TYPE_CHECKING:
    import torch

    from hllm.items.encoders.base import Encoder

_DTYPES: dict[str, type[np.floating]] = {"fp32": np.float32, "fp16": np.float16}
BATCH_SIZE = 64  # texts, where nothing else is asked for
# A block is written after this many seconds or bytes: what a killed process loses, in one file. A batch that takes
# longer is written by itself.
BLOCK_SECONDS, BLOCK_BYTES = 1.0, 64 << 20


@dataclass
class Job:
    """Texts to encode and all that it takes.

    spec        of the store they belong to
    keys        text key of each item in token order, None without text
    texts       by key
    load        makes the encoder; not called if nothing is missing
    batch_size  texts of a batch; None: as many tokens as the encoder counts batches in, or 64 texts
    name_of     names the item of a key, for an error
    shared      texts of all datasets, to be looked up and added to
    engine      what does the work: "local", or "ray": a cluster, whose nodes see the model at the same path
    remote      makes the encoder on a device given by name, and can be pickled: for a cluster
    """

    spec: dict[str, Any]
    keys: Sequence[bytes | None]
    texts: Mapping[bytes, str]
    load: Callable[[], Encoder]
    batch_size: int | None = None
    name_of: Callable[[bytes], str] = repr
    device: torch.device | None = None
    shared: Store | None = None
    engine: str = "local"
    remote: Callable[[str], Encoder] | None = None

    def run(self, store: Store, show: bool = True) -> dict[str, Any]:
        """Encode the texts that `store` lacks.

        Chunks and batches are planned from all the texts, so that an interrupted encoding goes on with the batches,
        and to the bits, of an uninterrupted one. Returns `encoded` and `reused` texts, `from_shared` of these,
        `encode_seconds` without loading the model, and of what was encoded `tokens` read, positions that were
        `computed`, the share of `padding` among these, `peak_memory` in bytes. Raises DataError at the first vector
        that is not finite; it is not stored, all others up to there are.
        """
        ranks, keys = now(), sorted(self.texts)
        if not ranks.first:  # the first process reads and writes the store; all encode
            return self._help(store, keys)
        with locked(store.folder):
            store.refresh()
            damaged = store.drop_damaged()
            wanted = store.find(keys) < 0
            missing = int(wanted.sum())
            if missing and self.shared is not None:
                wanted &= ~self._borrow(store, keys, wanted)
            wanted, damaged = ranks.agree((wanted, damaged))
            stats: dict[str, Any] = {"encoded": int(wanted.sum()), "encode_seconds": 0.0}
            stats |= {"reused": len(keys) - stats["encoded"], "from_shared": missing - stats["encoded"]}
            if stats["encoded"]:
                stats |= self._encode(store, keys, wanted, damaged, show)
            else:
                store.write_spec({**self.spec, "dim": store.dim})
            store.compact()
        if self.shared is not None:
            self._lend(store, keys)
        return ranks.agree(stats)

    def _help(self, store: Store, keys: list[bytes]) -> dict[str, Any]:
        """Encode this process's share of what the first one finds missing; returns what that one tells."""
        ranks = now()
        wanted, damaged = ranks.agree((np.zeros(0, bool), False))
        if wanted.any():
            chunks = Chunks(self.load(), [self.texts[key] for key in keys], wanted)
            for _ in self._made(chunks, keys, damaged):
                pass
        stats: dict[str, Any] = ranks.agree({})
        store.refresh()
        return stats

    def batches(
        self, encoder: Encoder, lengths: np.ndarray, wanted: np.ndarray, whole: bool = False
    ) -> Iterator[np.ndarray]:
        """The planned batches of the `wanted` bool (n,) texts among those that the encoder has prepared."""
        size, budget = self.batch_size or BATCH_SIZE, None if self.batch_size else encoder.budget
        return planned_batches(lengths, wanted, size, whole, budget)

    def _encode(
        self, store: Store, keys: list[bytes], wanted: np.ndarray, damaged: bool, show: bool
    ) -> dict[str, Any]:
        encoder = self.load()
        start, count = time.perf_counter(), int(wanted.sum())  # loading a model is not encoding
        chunks = Chunks(encoder, [self.texts[key] for key in keys], wanted)
        store.write_spec({**self.spec, "dim": encoder.dim})
        done, all_keys, dtype = 0, key_array(keys), _DTYPES[self.spec.get("store", "fp32")]
        with (
            progress(f"embedding with {self.spec['model']}", count, "items", show) as bar,
            _blocks(store) as add,
        ):
            for rows, vectors in self._made(chunks, keys, damaged):
                add(Shard(_kept(vectors, dtype), all_keys[rows], chunks.truncated[rows]))
                bar.advance(len(rows))
                done += int(chunks.lengths[rows].sum())
                bar.note(rate_text(done, time.perf_counter() - start, "tokens"))
        seconds, computed = time.perf_counter() - start, getattr(encoder, "computed", 0)
        return {
            "encode_seconds": seconds,
            "tokens": int(chunks.lengths[wanted].sum()),
            "computed": computed,
            "padding": getattr(encoder, "padding", 0) / max(computed, 1),
            "peak_memory": hardware.peak_memory(self.device),
        }

    def _made(
        self, chunks: Chunks, keys: list[bytes], whole: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and vectors of the wanted texts, batch by batch in order, whatever does the work."""
        made = self._here(chunks, whole) if self.engine == "local" else self._on_cluster(chunks, whole)
        return finite_rows(made, chunks.wanted, self.spec, lambda i: self.name_of(keys[i]))

    def _here(self, chunks: Chunks, whole: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in chunks:
            batches = self.batches(chunks.encoder, chunks.lengths[rows], chunks.wanted[rows], whole)
            for batch, vectors in over_ranks(chunks.encoder, batches, now()):
                yield rows[batch], vectors

    def _on_cluster(self, chunks: Chunks, whole: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert self.remote is not None
        pieces = []
        for rows in chunks:
            batches = self.batches(chunks.encoder, chunks.lengths[rows], chunks.wanted[rows], whole)
            pieces += [(rows, batch) for batch in batches]
        device = "cpu" if self.device is not None and self.device.type == "cpu" else "auto"
        made = spread(Encoding(self.remote, chunks.texts), pieces, self.engine, (device,))
        for (rows, batch), vectors in zip(pieces, made, strict=True):
            yield rows[batch], vectors

    def _borrow(self, store: Store, keys: list[bytes], wanted: np.ndarray) -> np.ndarray:
        """Copy from the shared texts what they have; bool (n,): which of the wanted these are."""
        assert self.shared is not None
        self.shared.refresh()
        there = wanted & (self.shared.find(keys) >= 0)
        if there.any():
            found = self.shared.take(key_array(keys)[there])
            dtype = _DTYPES[self.spec.get("store", "fp32")]
            store.append(Shard(_kept(found.vectors, dtype), found.keys, found.truncated))
        return there

    def _lend(self, store: Store, keys: list[bytes]) -> None:
        """Add to the shared texts what they lack."""
        assert self.shared is not None
        with locked(self.shared.folder):
            self.shared.refresh()
            self.shared.drop_damaged()
            new = key_array(keys)[self.shared.find(keys) < 0]
            if len(new):
                self.shared.append(store.take(new))
            self.shared.compact()


@dataclass
class Encoding:
    """The work of a cluster's process: pieces are the rows of a chunk of `texts`, and a batch of places in it."""

    make: Callable[[str], Encoder]
    texts: Sequence[str]

    def start(self, device: str) -> Callable[[tuple[np.ndarray, np.ndarray]], np.ndarray]:
        """What gives the vectors float32 (m, d) of a piece's batch."""
        encoder = self.make(device)
        held = np.zeros(0, dtype=np.int64)

        def encode(piece: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
            nonlocal held
            rows, batch = piece
            if not np.array_equal(rows, held):
                texts, held = [self.texts[i] for i in rows], rows
                if isinstance(encoder, Tokenising) and len(rows) < len(self.texts):
                    encoder.take(encoder.tokenise(texts))
                else:
                    encoder.prepare(texts)
            return encoder.encode(batch)

        return encode


def shared_store(spec: Mapping[str, Any]) -> Store:
    """Where the texts of all datasets are kept that are read as `spec` says: whatever the fields they came from, but
    where the tokenizer cuts fields (`Keep`), as then a text alone does not say what is read of it."""
    of_texts = {**spec, "catalogue": None}
    if spec.get("long_text") != "heads" and "field_tokens" not in spec:
        of_texts["fields"] = []
        for name in ("template", "clean", "long_text"):
            of_texts.pop(name, None)
    return Store(artifacts.home() / "texts" / spec_key(of_texts))


def _kept(vectors: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    """Vectors as they are stored; DataError where float16 does not hold them."""
    with np.errstate(over="ignore"):
        kept = vectors.astype(dtype, copy=False)
    if dtype is np.float16 and not np.isfinite(kept).all():
        raise DataError(
            f"vectors reach {np.abs(vectors).max():.3g}, beyond float16; use --store fp32 (store='fp32')"
        )
    return kept


def encode_batches(
    encoder: Encoder,
    batches: Iterator[np.ndarray],
    wanted: np.ndarray,
    spec: Mapping[str, Any],
    name_of: Callable[[int], str],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows int64 (m,) and vectors float32 (m, d) of the `wanted` bool (n,) texts, batch by batch; see `finite_rows`."""
    return finite_rows(one_ahead(encoder, batches), wanted, spec, name_of)


def finite_rows(
    made: Iterator[tuple[np.ndarray, np.ndarray]],
    wanted: np.ndarray,
    spec: Mapping[str, Any],
    name_of: Callable[[int], str],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The `wanted` bool (n,) rows and vectors of what was `made`, batch by batch.

    Raises DataError, after the other rows of its batch, for a vector that is not finite; `name_of`
    names the item of a row.
    """
    for rows, vectors in made:
        rows, vectors = rows[wanted[rows]], vectors[wanted[rows]]
        finite = np.isfinite(vectors).all(1)
        if finite.any():
            yield rows[finite], vectors[finite]
        if not finite.all():
            raise _not_finite(name_of(int(rows[~finite][0])), int((~finite).sum()), spec)


@contextmanager
def _blocks(store: Store) -> Iterator[Callable[[Shard], None]]:
    """A function that takes finished batches and appends them to `store` in blocks.

    What is left is written at the end, also when an error or Ctrl-C ends the encoding.
    """
    pending: list[Shard] = []
    size, since = 0, time.monotonic()

    def write() -> None:
        nonlocal size, since
        block, size, since = join(pending) if pending else None, 0, time.monotonic()
        pending.clear()  # before the writing, so that a full disk is met once
        if block:
            store.append(block)

    def add(batch: Shard) -> None:
        nonlocal size
        pending.append(batch)
        size += batch.vectors.nbytes
        if size >= BLOCK_BYTES or time.monotonic() - since >= BLOCK_SECONDS:
            write()

    try:
        yield add
    finally:
        write()


def _not_finite(item: str, count: int, spec: Mapping[str, Any]) -> DataError:
    precision = spec["precision"]
    advice = {
        "fp16": "float16 overflows in some models: use --precision bf16",
        "bf16": "use --precision fp32",
        "int8": "use --precision fp32",
        "fp32": "the weights may be damaged: download the model again, or use another one",
    }[precision]
    more = f" (and {count - 1} more of its batch)" if count > 1 else ""
    return DataError(
        f"{spec['model']} in {precision} gives a vector with NaN or infinity for {item}{more}; {advice}"
    )

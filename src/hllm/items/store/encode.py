"""The one loop that encodes texts: batches planned from all of them, vectors that are not finite refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm import artifacts, hardware
from hllm.engine import spread
from hllm.errors import DataError
from hllm.items.store.shards import Shard, Store, join, key_array, locked, spec_key
from hllm.progress import progress, rate_text
from hllm.ranks import Ranks, now

if TYPE_CHECKING:
    import torch

    from hllm.items.encoders.text import Encoder

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

        Batches are planned from all the texts, so that an interrupted encoding goes on with the batches, and to the
        bits, of an uninterrupted one. Returns `encoded` and `reused` texts, `from_shared` of these, `encode_seconds`
        without loading the model, and of what was encoded `tokens` read, positions that were `computed`, the share of
        `padding` among these, `peak_memory` in bytes. Raises DataError at the first vector that is not finite; it is
        not stored, all others up to there are.
        """
        ranks, keys = now(), sorted(self.texts)
        if not ranks.first:  # the first process reads and writes the store; all encode
            return self._help(store, keys, ranks)
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

    def _help(self, store: Store, keys: list[bytes], ranks: Ranks) -> dict[str, Any]:
        """Encode this process's share of what the first one finds missing; returns what that one tells."""
        wanted, damaged = ranks.agree((np.zeros(0, bool), False))
        if wanted.any():
            encoder = self.load()
            lengths = encoder.prepare([self.texts[key] for key in keys])
            batches = self.batches(encoder, lengths, wanted, damaged)
            made = over_ranks(encoder, batches, ranks)
            for _ in finite_rows(made, wanted, self.spec, lambda i: self.name_of(keys[i])):
                pass
        stats: dict[str, Any] = ranks.agree({})
        store.refresh()
        return stats

    def batches(
        self, encoder: Encoder, lengths: np.ndarray, wanted: np.ndarray, whole: bool = False
    ) -> Iterator[np.ndarray]:
        """The planned batches of the `wanted` bool (n,) texts, in the order of their keys."""
        size, budget = self.batch_size or BATCH_SIZE, None if self.batch_size else encoder.budget
        return planned_batches(lengths, wanted, size, whole, budget)

    def _encode(
        self, store: Store, keys: list[bytes], wanted: np.ndarray, damaged: bool, show: bool
    ) -> dict[str, Any]:
        encoder = self.load()
        lengths = encoder.prepare([self.texts[key] for key in keys])
        store.write_spec({**self.spec, "dim": encoder.dim})
        start, count = time.perf_counter(), int(wanted.sum())  # loading a model is not encoding
        done, all_keys, dtype = 0, key_array(keys), _DTYPES[self.spec.get("store", "fp32")]
        with (
            progress(f"embedding with {self.spec['model']}", count, "items", show) as bar,
            _blocks(store) as add,
        ):
            batches = self.batches(encoder, lengths, wanted, damaged)
            made = self._made(encoder, batches, keys)
            for rows, vectors in finite_rows(made, wanted, self.spec, lambda i: self.name_of(keys[i])):
                add(Shard(_kept(vectors, dtype), all_keys[rows], encoder.truncated[rows]))
                bar.advance(len(rows))
                done += int(lengths[rows].sum())
                bar.note(rate_text(done, time.perf_counter() - start, "tokens"))
        seconds, computed = time.perf_counter() - start, getattr(encoder, "computed", 0)
        return {
            "encode_seconds": seconds,
            "tokens": int(lengths[wanted].sum()),
            "computed": computed,
            "padding": getattr(encoder, "padding", 0) / max(computed, 1),
            "peak_memory": hardware.peak_memory(self.device),
        }

    def _made(
        self, encoder: Encoder, batches: Iterator[np.ndarray], keys: list[bytes]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and vectors of each batch, in order, whatever does the work."""
        if self.engine == "local":
            return over_ranks(encoder, batches, now())
        assert self.remote is not None
        planned = list(batches)
        work = Encoding(self.remote, [self.texts[key] for key in keys])
        device = "cpu" if self.device is not None and self.device.type == "cpu" else "auto"
        return zip(planned, spread(work, planned, self.engine, (device,)), strict=True)

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
    """The work of a cluster's process: the vectors of batches of `texts`, of which all know the same order."""

    make: Callable[[str], Encoder]
    texts: list[str]

    def start(self, device: str) -> Callable[[np.ndarray], np.ndarray]:
        """What encodes a batch of rows."""
        encoder = self.make(device)
        encoder.prepare(self.texts)
        return encoder.encode


def shared_store(spec: Mapping[str, Any]) -> Store:
    """Where the texts of all datasets are kept that are read as `spec` says: whatever the fields they came from."""
    of_texts = {**spec, "fields": [], "catalogue": None}
    for name in ("template", "clean", "field_tokens", "long_text"):
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


def over_ranks(
    encoder: Encoder, batches: Iterator[np.ndarray], ranks: Ranks
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and vectors of each batch, in order. Of several processes each encodes every so-manyth, and gets all."""
    if not ranks.many:
        yield from one_ahead(encoder, batches)
        return
    while group := list(islice(batches, ranks.world)):
        own = encoder.encode(group[ranks.rank]) if ranks.rank < len(group) else None
        for rows, vectors in zip(group, ranks.gather(own), strict=False):
            assert vectors is not None
            yield rows, vectors


def one_ahead(encoder: Encoder, batches: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and vectors of each batch; where the encoder works `ahead`, the next is under way before one is read."""
    if not getattr(encoder, "ahead", False):
        for rows in batches:
            yield rows, encoder.encode(rows)
        return
    before: tuple[np.ndarray, Callable[[], np.ndarray]] | None = None
    for rows in batches:
        under_way = rows, encoder.start(rows)  # type: ignore[attr-defined]
        if before is not None:
            yield before[0], before[1]()
        before = under_way
    if before is not None:
        yield before[0], before[1]()


def planned_batches(
    lengths: np.ndarray, wanted: np.ndarray, batch_size: int, whole: bool = False, budget: int | None = None
) -> Iterator[np.ndarray]:
    """Rows int64 of each batch that holds `wanted` bool (n,) texts, longest texts first.

    Longest first, so that too little memory shows at once and the estimate of the time left errs on
    the safe side. A batch of which only some texts are missing shrinks to these, as after an edited
    title; `whole` keeps it whole, as after damage, where the same bits are to come again. With a
    `budget` a batch has at most that many tokens, and at least one text, instead of `batch_size` texts.
    """
    order = np.argsort(-lengths, kind="stable")
    if budget is None:
        edges = np.arange(0, len(order) + batch_size, batch_size)
    else:
        ends, at, cuts = lengths[order].cumsum(), 0, [0]
        while at < len(order):
            before = int(ends[at - 1]) if at else 0
            at = max(at + 1, int(np.searchsorted(ends, before + budget, side="right")))
            cuts.append(at)
        edges = np.array(cuts)
    for first, last in pairwise(edges.tolist()):
        rows = order[first:last]
        if wanted[rows].any():
            yield rows if whole else rows[wanted[rows]]


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

"""The one loop that encodes texts: batches planned from all of them, vectors that are not finite refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.errors import DataError
from hllm.items.store.shards import Shard, Store, join, key_array, locked
from hllm.progress import progress

if TYPE_CHECKING:
    from hllm.items.encoders.text import Encoder

BATCH_SIZE = 64  # texts, where nothing else is asked for
# A block is written after this many seconds or bytes: what a killed process loses, in one file.
BLOCK_SECONDS, BLOCK_BYTES = 5.0, 64 << 20


def complete_store(
    store: Store,
    spec: Mapping[str, Any],
    texts: Mapping[bytes, str],
    load: Callable[[], Encoder],
    batch_size: int | None,
    name_of: Callable[[bytes], str],
    show: bool = True,
) -> tuple[int, float]:
    """Encode the `texts` (by key) that `store` lacks; return their number and the seconds.

    `load` makes the encoder, and is not called if nothing is missing. A batch has `batch_size` texts; None: as
    many tokens as the encoder counts batches in, or 64 texts. `name_of` names an item for an
    error. Batches are planned from all the texts, so that an interrupted encoding goes on with the
    batches, and to the bits, of an uninterrupted one. Raises DataError at the first vector that is not
    finite; it is not stored, all others up to there are.
    """
    with locked(store.folder):
        store.refresh()
        damaged = store.drop_damaged()
        keys = sorted(texts)
        wanted = store.find(keys) < 0
        count, seconds = int(wanted.sum()), 0.0
        if not count:
            store.write_spec({**spec, "dim": store.dim})
        else:
            encoder = load()
            lengths = encoder.prepare([texts[key] for key in keys])
            store.write_spec({**spec, "dim": encoder.dim})
            start = time.perf_counter()  # loading a model is not encoding
            title = f"embedding with {spec['model']}"
            with progress(title, count, "items", show) as bar, _blocks(store) as add:
                batches = planned_batches(
                    lengths, wanted, batch_size or BATCH_SIZE, damaged, None if batch_size else encoder.budget
                )
                for rows, vectors in encode_batches(
                    encoder, batches, wanted, spec, lambda i: name_of(keys[i])
                ):
                    add(Shard(vectors, key_array([keys[i] for i in rows]), encoder.truncated[rows]))
                    bar.advance(len(rows))
            seconds = time.perf_counter() - start
        store.compact()
    return count, seconds


def encode_batches(
    encoder: Encoder,
    batches: Iterator[np.ndarray],
    wanted: np.ndarray,
    spec: Mapping[str, Any],
    name_of: Callable[[int], str],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows int64 (m,) and vectors float32 (m, d) of the `wanted` bool (n,) texts, batch by batch.

    Raises DataError, after the other rows of its batch, for a vector that is not finite; `name_of`
    names the item of a row.
    """
    for rows in batches:
        vectors = encoder.encode(rows)
        rows, vectors = rows[wanted[rows]], vectors[wanted[rows]]
        finite = np.isfinite(vectors).all(1)
        if finite.any():
            yield rows[finite], vectors[finite]
        if not finite.all():
            raise _not_finite(name_of(int(rows[~finite][0])), int((~finite).sum()), spec)


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
        "fp32": "the weights may be damaged: download the model again, or use another one",
    }[precision]
    more = f" (and {count - 1} more of its batch)" if count > 1 else ""
    return DataError(
        f"{spec['model']} in {precision} gives a vector with NaN or infinity for {item}{more}; {advice}"
    )

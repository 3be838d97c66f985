"""How texts become batches: cut into chunks by length, a chunk tokenised while the one before it is encoded, and each
chunk's batches planned from its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from hllm.items.encoders.base import Tokenising
from hllm.ranks import Ranks

if TYPE_CHECKING:
    from hllm.items.encoders.base import Encoder

CHUNK = 1 << 20  # characters that are tokenised at once
FIRST = (
    1 << 17
)  # of the first chunk where a GPU waits for it; each that follows is twice as large, up to CHUNK
SAMPLE = 32  # texts by which a tokenizer is tried before the first chunk


@dataclass
class Chunks:
    """Texts as an encoder takes them: chunk by chunk, the next one tokenised by a thread meanwhile.

    encoder    TF-IDF and other encoders that must see all texts get them in one chunk
    texts      all of them, n
    wanted     bool (n,): those to encode. A chunk without any is not tokenised
    lengths    int64 (n,): tokens of the texts of the chunks so far
    truncated  bool (n,): which of these were cut

    Making one prepares the encoder, whose width is known then. The chunks are cut from all texts, whatever is wanted of
    them, so that an interrupted encoding goes on with the batches of an uninterrupted one.
    """

    encoder: Encoder
    texts: Sequence[str]
    wanted: np.ndarray
    lengths: np.ndarray = field(init=False)
    truncated: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = np.zeros(len(self.texts), dtype=np.int64)
        self.truncated = np.zeros(len(self.texts), dtype=bool)
        every = [np.arange(len(self.texts))]
        ahead = getattr(self.encoder, "ahead", False)
        whole = not isinstance(self.encoder, Tokenising)
        self.rows = every if whole else chunks_of(self.texts, min(FIRST, CHUNK) if ahead else CHUNK)
        first = self.rows[0]
        if len(self.rows) > 1:  # what a tokenizer and a model may lack shows in a sample
            first = np.linspace(0, len(self.texts) - 1, min(SAMPLE, len(self.texts))).astype(np.int64)
        self._known(first, self.encoder.prepare(self._of(first)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Rows int64 (m,) of each chunk that holds wanted texts; the encoder then knows these by their place in it."""
        encoder = self.encoder
        if len(self.rows) == 1 or not isinstance(encoder, Tokenising):
            yield self.rows[0]
            return
        left = [rows for rows in self.rows if self.wanted[rows].any()]
        with ThreadPoolExecutor(1, "tokenise") as thread:
            following = (thread.submit(encoder.tokenise, self._of(rows)) for rows in left)
            coming = next(following, None)
            for rows in left:
                assert coming is not None
                tokens = coming.result()
                coming = next(following, None)
                yield self._known(rows, encoder.take(tokens))

    def _of(self, rows: np.ndarray) -> list[str]:
        return [self.texts[i] for i in rows]

    def _known(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        self.lengths[rows], self.truncated[rows] = lengths, self.encoder.truncated
        return rows


def chunks_of(texts: Sequence[str], first: int) -> list[np.ndarray]:
    """Rows int64 of `texts` by falling number of characters, in at least one chunk.

    The first holds about `first` characters, each that follows twice as many, up to CHUNK; the last takes what is less
    than half a chunk more.
    """
    sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    order = np.argsort(-sizes, kind="stable")
    ends = sizes[order].cumsum()
    full, size, cuts = 0, first, [0]
    while True:
        cut = max(int(np.searchsorted(ends, full + size, side="right")), cuts[-1] + 1)
        if cut >= len(order) or ends[-1] - ends[cut - 1] <= size // 2:
            return np.split(order, cuts[1:])
        cuts.append(cut)
        full, size = int(ends[cut - 1]), min(2 * size, CHUNK)


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

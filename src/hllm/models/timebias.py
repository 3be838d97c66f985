"""Time bias: a learned number per head and bucket of the time between two events, added to attention scores."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hllm.packing import Rows

# Each bucket is e^.301 = 1.35 times as long as the one before, as in generative-recommenders; 72 reach 2^31 seconds.
LOG_STEP, N_BUCKETS = 0.301, 72


@dataclass(frozen=True)
class Gaps:
    """The time between any two events of a row.

    seconds  int64 (B, R): when the event in each slot happened; (T,) where attention goes by bounds, not by rows
    whole    int64 (B, 1, R, R): buckets of all pairs, made once for all layers; None for rows so long that they are
             made block by block
    """

    seconds: Tensor
    whole: Tensor | None

    def buckets(self, first: int, last: int, stop: int) -> Tensor:
        """Buckets int64 (B, 1, last - first, stop) of queries [first, last) and keys [0, stop)."""
        if self.whole is not None:
            return self.whole
        return gap_buckets(self.seconds[:, first:last], self.seconds[:, :stop])


def make_gaps(times: Tensor, rows: Rows, whole: bool) -> Gaps:
    """Gaps between the events of `rows`, whose `times` int64 (T,) are in seconds; `whole`: of all pairs at once."""
    seconds = times.new_zeros(rows.segments.numel()).index_copy(0, rows.slots, times).view_as(rows.segments)
    return Gaps(seconds, gap_buckets(seconds, seconds) if whole else None)


def gap_buckets(now: Tensor, then: Tensor) -> Tensor:
    """Bucket int64 (B, 1, m, n) of the seconds from `then` (B, n) to `now` (B, m): logarithmic, 0 up to a second.

    Between an event and an earlier one, never between an event and the one to be predicted.
    """
    seconds = (now.unsqueeze(2) - then.unsqueeze(1)).clamp(min=1).float()
    return (seconds.log() / LOG_STEP).clamp(max=N_BUCKETS - 1).long().unsqueeze(1)


def gap_bias(table: Tensor, buckets: Tensor) -> Tensor:
    """Bias (B, H, m, n) of `buckets` int64 (B, 1, m, n) in `table` (H, K).

    In backward each query counts into K numbers of its own, which are summed afterwards: all pairs at once would
    queue up at the few entries of the table.
    """
    b, _, m, n = buckets.shape
    n_heads, k = table.shape
    own = table.view(1, n_heads, 1, k).expand(b, n_heads, m, k)
    return own.gather(3, buckets.expand(b, n_heads, m, n))

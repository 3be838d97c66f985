"""Triton kernels of packed causal attention with learned biases, forward and backward.

Nothing of size (T, T) is written. A program takes B queries (or, for gradients of keys and values, B keys) of one head
and walks over the blocks of its histories' keys (or queries), as in FlashAttention-2 (Dao, 2023). Biases are looked up
by distance and by the time between two events; their gradients are summed within a program, into memory of its own,
and over programs afterwards: no atomics, so that the same inputs give the same bits.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NOBODY = tl.constexpr(2**31 - 1)  # begins the history of a token past the last one, which sees nothing
NONE_YET = tl.constexpr(-1e30)  # a peak below all scores, whose difference to -inf is no NaN


@triton.jit
def _bucket(now, then, LOG_STEP: tl.constexpr, N_BUCKETS: tl.constexpr):
    """Bucket of the time between two events (models/timebias.py)."""
    gap = tl.maximum(now - then, 1).to(tl.float32)
    return tl.minimum((tl.log(gap) / LOG_STEP).to(tl.int32), N_BUCKETS - 1)


@triton.jit
def _biased(
    scores, distance, seen, now, then, table_ptr, time_table_ptr, head, L,
    BY_DISTANCE: tl.constexpr, BY_TIME: tl.constexpr, LOG_STEP: tl.constexpr, N_BUCKETS: tl.constexpr,
):  # fmt: skip
    if BY_DISTANCE:
        scores += tl.load(table_ptr + head * L + distance, mask=seen, other=0.0)
    if BY_TIME:
        scores += tl.load(time_table_ptr + head * N_BUCKETS + _bucket(now, then, LOG_STEP, N_BUCKETS))
    return scores


@triton.jit
def _slope(scores):
    """Derivative of SiLU."""
    gate = tl.sigmoid(scores)
    return gate * (1 + scores * (1 - gate))


@triton.jit(do_not_specialize=["T", "L"])
def forward(
    q_ptr, k_ptr, v_ptr, table_ptr, time_table_ptr, seconds_ptr, first_ptr, out_ptr, lse_ptr,
    T, L, stride, scale, share,
    H: tl.constexpr, D: tl.constexpr, B: tl.constexpr, SOFTMAX: tl.constexpr, BY_DISTANCE: tl.constexpr,
    BY_TIME: tl.constexpr, LOG_STEP: tl.constexpr, N_BUCKETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (T, H, D), and with a softmax its normaliser lse (H, T), to base 2."""
    head, begin = tl.program_id(1), tl.program_id(0) * B
    i, d = begin + tl.arange(0, B), tl.arange(0, D)
    first = tl.load(first_ptr + i, mask=i < T, other=NOBODY)
    q = tl.load(q_ptr + i[:, None] * stride + head * D + d[None, :], mask=i[:, None] < T, other=0.0)
    now = tl.load(seconds_ptr + i, mask=i < T, other=0)[:, None] if BY_TIME else 0
    peak = tl.full((B,), NONE_YET, tl.float32)
    norm = tl.zeros((B,), tl.float32)
    out = tl.zeros((B, D), tl.float32)
    for start in range(tl.min(first) // B * B, tl.minimum(begin + B, T), B):
        j = start + tl.arange(0, B)
        at = j[:, None] * stride + head * D + d[None, :]
        k = tl.load(k_ptr + at, mask=j[:, None] < T, other=0.0)
        v = tl.load(v_ptr + at, mask=j[:, None] < T, other=0.0)
        then = tl.load(seconds_ptr + j, mask=j < T, other=0)[None, :] if BY_TIME else 0
        distance = i[:, None] - j[None, :]
        seen = (distance >= 0) & (j[None, :] >= first[:, None])
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = _biased(
            scores, distance, seen, now, then, table_ptr, time_table_ptr, head, L,
            BY_DISTANCE, BY_TIME, LOG_STEP, N_BUCKETS,
        )  # fmt: skip
        if SOFTMAX:
            scores = tl.where(seen, scores * LOG2E, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, 1))
            weights = tl.exp2(scores - higher[:, None])
            shrink = tl.exp2(peak - higher)
            norm = norm * shrink + tl.sum(weights, 1)
            out = out * shrink[:, None]
            peak = higher
        else:
            weights = tl.where(seen, scores * tl.sigmoid(scores) * share, 0.0)
        out += tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    if SOFTMAX:
        out = out / norm[:, None]
        tl.store(lse_ptr + head * T + i, peak + tl.log2(norm), mask=i < T)
    at = i[:, None] * (H * D) + head * D + d[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=i[:, None] < T)


@triton.jit(do_not_specialize=["T", "L"])
def backward_queries(
    q_ptr, k_ptr, v_ptr, table_ptr, time_table_ptr, seconds_ptr, first_ptr, out_ptr, lse_ptr, grad_ptr,
    delta_ptr, grad_q_ptr, by_distance_ptr, by_time_ptr, T, L, stride, scale, share,
    H: tl.constexpr, D: tl.constexpr, B: tl.constexpr, SOFTMAX: tl.constexpr, BY_DISTANCE: tl.constexpr,
    BY_TIME: tl.constexpr, LOG_STEP: tl.constexpr, N_BUCKETS: tl.constexpr, PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries; of the biases, (programs, H, L) and (programs, H, K); and delta (H, T), the mean of
    the weights' gradient under the weights."""
    head, begin = tl.program_id(1), tl.program_id(0) * B
    own = tl.program_id(0) * H + head
    c, d = tl.arange(0, B), tl.arange(0, D)
    i = begin + c
    first = tl.load(first_ptr + i, mask=i < T, other=NOBODY)
    at_q = i[:, None] * stride + head * D + d[None, :]
    at_out = i[:, None] * (H * D) + head * D + d[None, :]
    q = tl.load(q_ptr + at_q, mask=i[:, None] < T, other=0.0)
    grad = tl.load(grad_ptr + at_out, mask=i[:, None] < T, other=0.0)
    now = tl.load(seconds_ptr + i, mask=i < T, other=0)[:, None] if BY_TIME else 0
    lse = tl.load(lse_ptr + head * T + i, mask=i < T, other=float("inf")) if SOFTMAX else 0
    delta = tl.zeros((B,), tl.float32)
    if SOFTMAX:
        out = tl.load(out_ptr + at_out, mask=i[:, None] < T, other=0.0)
        delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
        tl.store(delta_ptr + head * T + i, delta, mask=i < T)
    grad_q = tl.zeros((B, D), tl.float32)
    carried = tl.zeros((B,), tl.float32)
    by_time = tl.zeros((SLOTS,), tl.float32)
    for start in range(tl.min(first) // B * B, tl.minimum(begin + B, T), B):
        j = start + c
        at = j[:, None] * stride + head * D + d[None, :]
        k = tl.load(k_ptr + at, mask=j[:, None] < T, other=0.0)
        v = tl.load(v_ptr + at, mask=j[:, None] < T, other=0.0)
        then = tl.load(seconds_ptr + j, mask=j < T, other=0)[None, :] if BY_TIME else 0
        distance = i[:, None] - j[None, :]
        seen = (distance >= 0) & (j[None, :] >= first[:, None])
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = _biased(
            scores, distance, seen, now, then, table_ptr, time_table_ptr, head, L,
            BY_DISTANCE, BY_TIME, LOG_STEP, N_BUCKETS,
        )  # fmt: skip
        grad_scores = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        if SOFTMAX:
            weights = tl.exp2(scores * LOG2E - lse[:, None])
            grad_scores = tl.where(seen, weights * (grad_scores - delta[:, None]), 0.0)
        else:
            grad_scores = tl.where(seen, grad_scores * share * _slope(scores), 0.0)
        grad_q += tl.dot(grad_scores.to(k.dtype), k, input_precision=PRECISION) * scale
        if BY_DISTANCE:
            # Column c of the turned tile holds distances c + (begin - start), and above the diagonal B less.
            turned = tl.gather(grad_scores, (c[:, None] - c[None, :] + B) % B, 1)
            near = c[:, None] >= c[None, :]
            total = carried + tl.sum(tl.where(near, turned, 0.0), 0)
            carried = tl.sum(tl.where(near, 0.0, turned), 0)
            at = begin - start + c
            tl.store(by_distance_ptr + own * L + at, total, mask=at < L)
        if BY_TIME:
            # Few buckets occur between two blocks of events.
            bucket = _bucket(now, then, LOG_STEP, N_BUCKETS)
            low = tl.min(tl.min(tl.where(seen, bucket, N_BUCKETS), 1), 0)
            high = tl.max(tl.max(tl.where(seen, bucket, -1), 1), 0)
            for b in range(low, high + 1):
                total_b = tl.sum(tl.sum(tl.where(bucket == b, grad_scores, 0.0), 1), 0)
                by_time += tl.where(tl.arange(0, SLOTS) == b, total_b, 0.0)
    at_q = i[:, None] * (3 * H * D) + head * D + d[None, :]
    tl.store(grad_q_ptr + at_q, grad_q.to(grad_q_ptr.dtype.element_ty), mask=i[:, None] < T)
    if BY_TIME:
        b = tl.arange(0, SLOTS)
        tl.store(by_time_ptr + own * N_BUCKETS + b, by_time, mask=b < N_BUCKETS)


@triton.jit(do_not_specialize=["T", "L"])
def backward_keys(
    q_ptr, k_ptr, v_ptr, table_ptr, time_table_ptr, seconds_ptr, first_ptr, stop_ptr, lse_ptr, grad_ptr,
    delta_ptr, grad_k_ptr, grad_v_ptr, T, L, stride, scale, share,
    H: tl.constexpr, D: tl.constexpr, B: tl.constexpr, SOFTMAX: tl.constexpr, BY_DISTANCE: tl.constexpr,
    BY_TIME: tl.constexpr, LOG_STEP: tl.constexpr, N_BUCKETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys and values; tiles are (keys, queries)."""
    head, begin = tl.program_id(1), tl.program_id(0) * B
    j, d = begin + tl.arange(0, B), tl.arange(0, D)
    at_k = j[:, None] * stride + head * D + d[None, :]
    k = tl.load(k_ptr + at_k, mask=j[:, None] < T, other=0.0)
    v = tl.load(v_ptr + at_k, mask=j[:, None] < T, other=0.0)
    then = tl.load(seconds_ptr + j, mask=j < T, other=0)[:, None] if BY_TIME else 0
    stop = tl.max(tl.load(stop_ptr + j, mask=j < T, other=0))
    grad_k = tl.zeros((B, D), tl.float32)
    grad_v = tl.zeros((B, D), tl.float32)
    for start in range(begin, stop, B):
        i = start + tl.arange(0, B)
        first = tl.load(first_ptr + i, mask=i < T, other=NOBODY)
        q = tl.load(q_ptr + i[:, None] * stride + head * D + d[None, :], mask=i[:, None] < T, other=0.0)
        at = i[:, None] * (H * D) + head * D + d[None, :]
        grad = tl.load(grad_ptr + at, mask=i[:, None] < T, other=0.0)
        now = tl.load(seconds_ptr + i, mask=i < T, other=0)[None, :] if BY_TIME else 0
        distance = i[None, :] - j[:, None]
        seen = (distance >= 0) & (j[:, None] >= first[None, :])
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        scores = _biased(
            scores, distance, seen, now, then, table_ptr, time_table_ptr, head, L,
            BY_DISTANCE, BY_TIME, LOG_STEP, N_BUCKETS,
        )  # fmt: skip
        grad_scores = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        if SOFTMAX:
            lse = tl.load(lse_ptr + head * T + i, mask=i < T, other=float("inf"))
            delta = tl.load(delta_ptr + head * T + i, mask=i < T, other=0.0)
            weights = tl.where(seen, tl.exp2(scores * LOG2E - lse[None, :]), 0.0)
            grad_scores = weights * (grad_scores - delta[None, :])
        else:
            weights = tl.where(seen, scores * tl.sigmoid(scores) * share, 0.0)
            grad_scores = tl.where(seen, grad_scores * share * _slope(scores), 0.0)
        grad_v += tl.dot(weights.to(grad.dtype), grad, input_precision=PRECISION)
        grad_k += tl.dot(grad_scores.to(q.dtype), q, input_precision=PRECISION) * scale
    at_k = j[:, None] * (3 * H * D) + head * D + d[None, :]
    tl.store(grad_k_ptr + at_k, grad_k.to(grad_k_ptr.dtype.element_ty), mask=j[:, None] < T)
    tl.store(grad_v_ptr + at_k, grad_v.to(grad_v_ptr.dtype.element_ty), mask=j[:, None] < T)

"""Full cross entropy over the training items, in tiles of positions x items.

At most CHUNK_LOGITS logits exist at a time, whatever the batch and the catalogue. Where a good
number of positions fits against all items at once, a tile spans the items and each logit is computed
once: the loss is a scalar, so its gradients only scale with what arrives in backward. A larger
catalogue is cut along the items too: one pass over the tiles gives the normaliser (an online
log-sum-exp, Milakov and Gimelshein, 2018), and a second computes them again for the gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from hllm import kernels
from hllm.hardware import is_out_of_memory

CHUNK_LOGITS = 1 << 25  # logits held at once: 128 MiB in float32
CPU_LOGITS = 1 << 19  # on a CPU: what its caches hold, and its allocator reuses
# With fewer positions against all items at once, adding to the items' gradient so often costs more than
# computing the logits twice.
LEAST_POSITIONS = 256
KERNEL_ITEMS = 1 << 16  # most logits of a position that a kernel holds at once
# Most positions and logits of a tile cut along both axes: a CPU is faster within its caches, a GPU with
# launches that last.
TILES = {"cpu": (1024, 1 << 21), "cuda": (4096, CHUNK_LOGITS)}


def cross_entropy(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    *,
    item_chunk: int | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """Mean, over the positions that have a target, of the cross entropy of `queries @ items.T`.

    queries (T, d) and items (M, d), float32 or float64, items also bfloat16, as their gradient then is;
    targets int64 (T,) rows of `items`, -1 where there is nothing to predict (neither loss nor gradient).
    Label smoothing spreads its share evenly over all M items, as torch's does. Under autocast the
    matrix products take bf16 operands with float32 accumulators.

    chunk, item_chunk   positions and items per tile; both None: chosen. With one of them alone
                        a tile spans all of the other
    count               scalar tensor, targets in the whole batch of which these are a part (ranks,
                        accumulation): the sum is divided by it. None: the targets here

    Where items are cut too, backward scales their gradient in place, so it can run only once.
    """
    t, m = queries.shape[0], items.shape[0]
    if chunk is None and item_chunk is None:
        chunk, item_chunk = tile_shape(t, m, queries.device.type)
    chunk, item_chunk = chunk or max(t, 1), item_chunk or max(m, 1)
    return _TiledCrossEntropy.apply(queries, items, targets, label_smoothing, chunk, item_chunk, count)


def tile_shape(t: int, m: int, device_type: str = "cuda") -> tuple[int, int]:
    """Positions and items of a tile of at most CHUNK_LOGITS logits, for `t` positions and `m` items."""
    positions = CHUNK_LOGITS // max(1, m)
    if positions >= min(t, LEAST_POSITIONS):
        if device_type == "cpu":
            positions = min(positions, max(CPU_LOGITS // max(1, m), LEAST_POSITIONS))
        return max(1, positions), max(1, m)
    positions, logits = TILES.get(device_type, TILES["cuda"])
    logits = min(logits, CHUNK_LOGITS)
    positions = min(t, positions, logits)
    return positions, min(m, logits // positions)


class _TiledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, items, targets, smoothing, chunk, item_chunk, count):  # type: ignore[no-untyped-def]
        device, wide = queries.device.type, queries.dtype
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wide
        # Frozen items need no gradient: a third of the products, and M x d numbers.
        grad_items = torch.zeros_like(items) if ctx.needs_input_grad[1] else None
        with torch.autocast(device, enabled=False):
            if item_chunk >= items.shape[0]:
                total, grad_queries = one_pass(queries, items, targets, smoothing, narrow, chunk, grad_items)
            else:
                shape = (chunk, item_chunk)
                total, grad_queries = two_passes(
                    queries, items, targets, smoothing, narrow, shape, grad_items
                )
        count = divisor(targets, count)
        ctx.save_for_backward(grad_queries, grad_items, count)
        ctx.in_place = item_chunk < items.shape[0]
        return total / count

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad_queries, grad_items, count = ctx.saved_tensors
        scale = grad / count
        if grad_items is not None:
            grad_items = grad_items.mul_(scale) if ctx.in_place else grad_items * scale
        return (grad_queries * scale, grad_items) + (None,) * 5


def divisor(targets: Tensor, count: Tensor | None) -> Tensor:
    """What a summed loss is divided by, (): `count` if given, else the number of targets here; 1 at least."""
    return ((targets >= 0).sum() if count is None else count.detach()).clamp(min=1)


def one_pass(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    smoothing: float,
    narrow: torch.dtype,
    chunk: int,
    grad_items: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Summed loss () and its gradient with respect to the queries (T, d); that of the items is added
    to `grad_items` (M, d). Tiles of `chunk` positions x all items.

    Smoothing adds terms that are the same for all items, so they need no tile: the mean logit is the
    product with the mean item, and the gradients of it are sums over items and over positions.
    """
    wide, m = queries.dtype, items.shape[0]
    fused = wide == torch.float32 and m <= KERNEL_ITEMS and kernels.usable(queries.device)
    operand = items.to(narrow)
    mean_item = operand.mean(0, dtype=wide) if smoothing else None  # (d,)
    total, grad_queries = queries.new_zeros(()), torch.empty_like(queries)
    for part in slices(queries.shape[0], chunk):
        q = queries[part].to(narrow)
        valid = (targets[part] >= 0).to(wide)  # (C,)
        logits = matmul_wide(q, operand.T, wide)  # (C, M)
        step = softmax_by_kernel if fused else softmax_gradient
        loss, grad = step(logits, targets[part], smoothing, narrow)
        grad_queries[part] = matmul_wide(grad, operand, wide)
        if grad_items is not None:
            grad_items += matmul_wide(grad.T, q, wide)
        if mean_item is not None:
            given = q.to(wide)
            loss = loss - smoothing * (given @ mean_item)
            grad_queries[part].addr_(valid, mean_item, alpha=-smoothing)
            if grad_items is not None:
                grad_items -= (smoothing / m) * (valid @ given)
        total += loss @ valid
        del logits, grad  # before the next tile is made
    return total, grad_queries


def softmax_gradient(
    logits: Tensor, targets: Tensor, smoothing: float, narrow: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Loss (C,) and its gradient (C, M) in `narrow` of `logits` (C, M), whose memory is used for it.

    targets int64 (C,), -1 where there is none: the gradient is 0, the loss of no meaning. d loss / d logits = softmax
    less 1 - `smoothing` at the target.
    """
    t, valid = targets.clamp(min=0).unsqueeze(1), (targets >= 0).to(logits.dtype)
    peak = logits.amax(1)
    hit = logits.gather(1, t).squeeze(1)
    grad = logits.sub_(peak.unsqueeze(1)).exp_()
    norm = grad.sum(1)
    grad.mul_((valid / norm).unsqueeze(1))
    grad.scatter_add_(1, t, (smoothing - 1.0) * valid.unsqueeze(1))
    return peak + norm.log() - (1 - smoothing) * hit, grad.to(narrow)


def softmax_by_kernel(
    logits: Tensor, targets: Tensor, smoothing: float, narrow: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As `softmax_gradient`, in one look at the logits; plainly where the kernel does not compile."""
    try:
        from hllm.kernels import softmax

        return softmax.softmax_gradient(logits, targets, smoothing, narrow)
    except Exception as err:  # compilers raise whatever they like
        if is_out_of_memory(err):
            raise
        warnings.warn(f"the loss is computed without its kernel: {err!r:.200}", stacklevel=2)
        return softmax_gradient(logits, targets, smoothing, narrow)


def two_passes(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    smoothing: float,
    narrow: torch.dtype,
    shape: tuple[int, int],
    grad_items: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `one_pass`, in tiles of `shape` = (positions, items)."""
    wide, m = queries.dtype, items.shape[0]
    total, grad_queries = queries.new_zeros(()), torch.zeros_like(queries)
    mean_item = torch.zeros_like(queries[0])
    if smoothing:
        for columns in slices(m, shape[1]):
            mean_item += items[columns].to(narrow).sum(0, dtype=wide) / m
    for part in slices(queries.shape[0], shape[0]):
        q, t = queries[part].to(narrow), targets[part]
        valid = (t >= 0).to(wide)
        log_norm, hit = normalisers(q, items, t, wide, shape[1])
        loss = log_norm - (1 - smoothing) * hit - smoothing * (q.to(wide) @ mean_item)
        total += loss @ valid
        log_norm = log_norm.masked_fill(t < 0, float("inf"))  # so that their softmax is 0
        at_target = (hit - log_norm).exp() - (1 - smoothing)  # (C,)
        grad_part = grad_queries[part]
        for columns in slices(m, shape[1]):
            operand = items[columns].to(narrow)
            grad = tile_gradient(q, operand, t - columns.start, log_norm, at_target)
            grad_part += matmul_wide(grad, operand, wide)
            if grad_items is not None:
                grad_items[columns] += matmul_wide(grad.T, q, wide)
            del grad  # before the next tile is made
        if smoothing:
            grad_part -= smoothing * valid.unsqueeze(1) * mean_item
            if grad_items is not None:
                grad_items -= (smoothing / m) * (valid @ q.to(wide))
    return total, grad_queries


def normalisers(
    q: Tensor, items: Tensor, targets: Tensor, wide: torch.dtype, item_chunk: int
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over all items (C,) and the target's logit (C,), 0 without a target, in one pass."""
    peak = q.new_full((q.shape[0],), float("-inf"), dtype=wide)
    total, hit = torch.zeros_like(peak), torch.zeros_like(peak)
    for columns in slices(items.shape[0], item_chunk):
        logits = matmul_wide(q, items[columns].to(q.dtype).T, wide)
        column, inside = within(targets - columns.start, logits.shape[1])
        hit = torch.where(inside, logits.gather(1, column).squeeze(1), hit)
        higher = torch.maximum(peak, logits.amax(1))
        total = total * (peak - higher).exp() + logits.sub_(higher.unsqueeze(1)).exp_().sum(1)
        peak = higher
        del logits  # before the next tile is made
    return peak + total.log(), hit


def tile_gradient(q: Tensor, operand: Tensor, targets: Tensor, log_norm: Tensor, at_target: Tensor) -> Tensor:
    """d loss / d logits of one tile (C, W), in q's dtype: the softmax, and `at_target` (C,) at the target.

    targets (C,) count from the tile's first item. The target's entry is rounded to q's dtype once:
    a probability near 1 less 1, both rounded before, would be lost in bf16.
    """
    logits = matmul_wide(q, operand.T, log_norm.dtype).sub_(log_norm.unsqueeze(1))
    grad = torch.exp(
        logits, out=logits if q.dtype == logits.dtype else torch.empty_like(logits, dtype=q.dtype)
    )
    column, inside = within(targets, grad.shape[1])
    entry = torch.where(inside.unsqueeze(1), at_target.unsqueeze(1).to(grad.dtype), grad.gather(1, column))
    return grad.scatter_(1, column, entry)


def within(targets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Column (C, 1) of each target in a tile, clamped to it, and whether it lies there, bool (C,)."""
    return targets.clamp(0, width - 1).unsqueeze(1), (targets >= 0) & (targets < width)


def slices(n: int, size: int) -> Iterator[slice]:
    """[0, n) in pieces of `size`, the last one shorter."""
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


def matmul_wide(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`a @ b` in `dtype`, accumulated there even where a and b are narrower."""
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)

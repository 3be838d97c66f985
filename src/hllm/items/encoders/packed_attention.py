"""Attention inside a pack: sequences laid end to end in one row, each seeing itself and a shared prefix.

transformers' models call the attention function that their configuration names (AttentionInterface).
The one registered here, `NAME`, takes a `Pack` from the model's keyword arguments. On a GPU it runs
torch's variable-length kernel; elsewhere, and where that kernel lacks something (float32, soft-capping,
dropout), whole sequences are laid into rows of equal length under a mask.
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.items.encoders.pack import Pack, VarlenPlan

NAME = "hllm_packed"
_UNREADABLE = ("position_bias", "s_aux", "head_mask")  # what some models add to scores, and this cannot


class _Permute(torch.autograd.Function):
    """x[back], whose backward is a gather too: adding into rows is slower, and rounds in bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(to)
        return x[back]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (to,) = ctx.saved_tensors
        return grads[0][to], None, None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    pack: Pack | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: query (1, H, T, D), key and value (1, Hk, T, D) to (1, T, H, D).

    NotImplementedError for what a pack does not carry; PackedModel then pads instead.
    """
    unreadable = [name for name in _UNREADABLE if others.get(name) is not None]
    if pack is None or attention_mask is not None or unreadable or query.shape[0] != 1:
        raise NotImplementedError(f"packed attention without a pack, or with {unreadable or 'a mask'}")
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, D)
    if torch.is_autocast_enabled(q.device.type):  # rotary embeddings leave float32 behind
        half = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(half), k.to(half), v.to(half)
    scale = 1 / math.sqrt(q.shape[-1]) if scaling is None else float(scaling)
    return attend(q, k, v, pack, causal, sliding_window, scale, softcap, dropout).unsqueeze(0), None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pack: Pack,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """q (T, H, D), k and v (T, Hk, D) to (T, H, D), by the kernel where it runs, else in the portable form."""
    if use_varlen(q, v, dropout, softcap, window):
        repeat = varlen_works(q.device.index or 0) == "repeated"
        return attend_varlen(q, k, v, pack, causal, window, scale, repeat)
    if q.device.type == "cpu" and softcap is None and 4 * len(pack.runs) <= len(pack.lengths) + 8:
        return attend_runs(q, k, v, pack, causal, window, scale, dropout)
    return attend_grid(q, k, v, pack, causal, window, scale, softcap, dropout)


def attend_grid(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pack: Pack,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The portable form: q (T, H, D), k and v (T, Hk, D) to (T, H, D), any dtype and device."""
    mask = pack.mask(causal, window)
    slots, (b, r) = pack.grid.slots, pack.grid.segments.shape

    def lay(x: Tensor) -> Tensor:  # (T, H, D) -> (B, H, R, D)
        grid = x.new_zeros(b * r, *x.shape[1:]).index_copy(0, slots, x)
        return grid.view(b, r, *x.shape[1:]).transpose(1, 2)

    keys, values = lay(k), lay(v)
    if pack.prefix:
        keys, values = (
            torch.cat((x[: pack.prefix].transpose(0, 1).expand(b, -1, -1, -1), grid), dim=2)
            for x, grid in ((k, keys), (v, values))
        )
    group = q.shape[1] // k.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    if softcap is None:
        out = F.scaled_dot_product_attention(lay(q), keys, values, mask, dropout, scale=scale)
    else:
        scores = torch.tanh(lay(q) @ keys.transpose(2, 3) * scale / softcap) * softcap
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        out = F.dropout(weights, dropout) @ values
    return out.transpose(1, 2).reshape(b * r, q.shape[1], v.shape[-1])[slots]


def attend_runs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pack: Pack,
    causal: bool,
    window: int | None,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Neighbours of one length at a time, as they lie: nothing is copied but the prefix, or masked but its future.

    Shapes as in `attend_grid`. For a CPU, which many calls cost little, and texts sorted by length.
    """
    parts, grouped = [], q.shape[1] != k.shape[1]
    for at, n, length, before in pack.runs:
        own = slice(at, at + n * length)
        queries, keys, values = (x[own].unflatten(0, (n, length)).transpose(1, 2) for x in (q, k, v))
        if before:
            shared = (x[:before].transpose(0, 1).expand(n, -1, -1, -1) for x in (k, v))
            keys, values = (torch.cat(both, dim=2) for both in zip(shared, (keys, values), strict=True))
        mask = None
        if window is not None or (causal and before):
            place = torch.arange(before, before + length, device=q.device).unsqueeze(1)
            ahead = place - torch.arange(before + length, device=q.device)
            mask = ahead >= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
            if window is not None:
                mask = mask & (ahead.abs() < window)
        out = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            mask,
            dropout,
            is_causal=causal and mask is None,
            scale=scale,
            enable_gqa=grouped,
        )
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def attend_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pack: Pack,
    causal: bool,
    window: int | None,
    scale: float,
    repeat: bool = False,
) -> Tensor:
    """torch's variable-length kernel (FlashAttention; Dao, 2023): shapes as in `attend_grid`, half precision.

    repeat: keys and values are repeated for every query head, where the kernel takes no grouped heads.
    """
    if repeat:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    plan = pack.varlen
    if plan.to is not None:
        n = len(pack.lengths) - 1
        k, v = (
            _Permute.apply(
                torch.cat((x, x[: pack.prefix].expand(n, -1, -1, -1).flatten(0, 1))), plan.to, plan.back
            )
            for x in (k, v)
        )
    reach = -1 if window is None else window - 1
    edges = (reach, 0 if causal else reach)
    return _varlen_call(q.contiguous(), k.contiguous(), v.contiguous(), plan, edges, scale)


@functools.cache
def _varlen_arguments() -> frozenset[str]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def _varlen_call(
    q: Tensor, k: Tensor, v: Tensor, plan: VarlenPlan, edges: tuple[int, int], scale: float
) -> Tensor:
    """`varlen_attn`, whose arguments have grown from release to release."""
    from torch.nn.attention.varlen import varlen_attn

    known, options = _varlen_arguments(), dict[str, Any]()
    if "scale" in known:
        options["scale"] = scale
    else:
        q = q * (scale * math.sqrt(q.shape[-1]))
    if "window_size" in known:
        options["window_size"] = edges
    elif edges[0] == -1:
        options["is_causal"] = edges[1] == 0
    else:
        raise NotImplementedError("this torch has no windows in varlen_attn")
    if "enable_gqa" in known:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    out: Any = varlen_attn(q, k, v, plan.cu_q, plan.cu_k, plan.max_q, plan.max_k, **options)
    return out


def use_varlen(q: Tensor, v: Tensor, dropout: float, softcap: float | None, window: int | None) -> bool:
    """Whether the variable-length kernel takes these and, tried once a device, gives the right values."""
    width = q.shape[-1]
    return (
        q.device.type == "cuda"
        and q.dtype in (torch.bfloat16, torch.float16)
        and not dropout
        and softcap is None
        and (window is None or "window_size" in _varlen_arguments())
        and width == v.shape[-1]
        and width <= 256
        and width % 8 == 0
        and bool(varlen_works(q.device.index or 0))
    )


@functools.cache
def varlen_works(index: int) -> str:
    """ "grouped" or "repeated" (heads), where the kernel's values and gradients equal the portable form's, else ""."""
    for form in ("grouped", "repeated"):
        try:
            if _varlen_agrees(torch.device("cuda", index), form == "repeated"):
                return form
        except Exception:  # a kernel that this build or this card does not have fails in its own way
            continue
    return ""


@torch.inference_mode(False)
@torch.enable_grad()
def _varlen_agrees(device: torch.device, repeat: bool) -> bool:
    """Compare with the portable form in float32: a prefix, grouped heads, a window."""
    pack = Pack([5, 40, 7, 130], device, prefix=5)
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int) -> Tensor:
        x = torch.randn(pack.total, heads, 64, device=device, generator=generator)
        return x.bfloat16().requires_grad_()

    q, k, v = draw(4), draw(2), draw(2)
    upstream = draw(4).detach()
    windows = (None, 32) if "window_size" in _varlen_arguments() else (None,)
    with torch.autocast("cuda", enabled=False):
        for window in windows:
            out = attend_varlen(q, k, v, pack, True, window, 0.125, repeat)
            exact = attend_grid(q.float(), k.float(), v.float(), pack, True, window, 0.125)
            got = (out.detach(), *torch.autograd.grad(out, (q, k, v), upstream))
            want = (exact.detach(), *torch.autograd.grad(exact, (q, k, v), upstream.float()))
            for a, b in zip(got, want, strict=True):
                if not float((a.float() - b.float()).norm() / b.float().norm()) < 2e-2:
                    return False
    return True


@functools.cache
def register() -> str:
    """Make `NAME` known to transformers, once; returns it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    return NAME

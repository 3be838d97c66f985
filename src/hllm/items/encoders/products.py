"""Matrix products of models written out for inference: merged, in 8-bit integers, or by oneDNN with what follows them.

On a processor with bf16 instructions oneDNN reads weights laid out for it once, and applies an activation, a factor or
a residual to each tile before it leaves the cache (what torch.compile makes of such blocks on a CPU).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm import hardware

Product = Callable[[Tensor], Tensor]
LAID_OUT = 2 << 30  # bytes of weights of which a second copy, laid out for oneDNN, is held


def takes_onednn(linears: Sequence[nn.Module]) -> bool:
    """Whether the products of all `linears` are best left to oneDNN here: by what the machine has, never by a
    measurement, so that the same machine makes the same bits."""
    weights: list[Any] = [linear.weight for linear in linears]
    return (
        all(type(linear) is nn.Linear for linear in linears)
        and all(w.device.type == "cpu" and w.dtype is torch.bfloat16 for w in weights)
        and sum(w.nbytes for w in weights) <= LAID_OUT
        and hardware.bf16_is_fast("cpu")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


class Products:
    """What makes the products of a model: in 8-bit integers (`quantise`), by oneDNN, or as torch's modules do."""

    def __init__(self, linears: Sequence[nn.Module], quantise: bool) -> None:
        self.quantise, self.onednn = quantise, not quantise and takes_onednn(linears)

    def merged(self, *linears: Any) -> Product:
        """One product for several of the same input."""
        if self.onednn:
            weight, bias = _laid_out(*linears)
            return lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return _merged(linears, self.quantise)

    def added(self, linear: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """x, residual -> residual + linear(x)."""
        if self.onednn:
            weight, bias = _laid_out(linear)
            return lambda x, residual: torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, weight, bias, "add"
            )
        product = _merged((linear,), self.quantise)
        if self.quantise or linear.bias is not None:
            return lambda x, residual: product(x).add_(residual)
        weight = linear.weight
        return lambda x, residual: torch.addmm(residual, x, weight.T)

    def gated(self, gate: Any, up: Any, gating: Product) -> Product:
        """silu(gate(x)) * up(x); `gating` makes it of both side by side."""
        if self.onednn:
            (gates, gate_bias), (ups, up_bias) = _laid_out(gate), _laid_out(up)
            return lambda x: torch.ops.mkldnn._linear_pointwise.binary(
                x,
                torch.ops.mkldnn._linear_pointwise(x, gates, gate_bias, "swish", [], ""),
                ups,
                up_bias,
                "mul",
            )
        both = _merged((gate, up), self.quantise)
        return lambda x: gating(both(x))

    def activated(self, linear: Any, act: Any) -> Product:
        """act(linear(x)); GELU by oneDNN together with the product."""
        if self.onednn and is_gelu(act):
            weight, bias = _laid_out(linear)
            return lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
        product = self.merged(linear)
        return lambda x: act(product(x))


def is_gelu(act: Any) -> bool:
    """Whether `act` is GELU by the error function, as torch or transformers have it."""
    from transformers.activations import ACT2FN

    return getattr(act, "approximate", "none") == "none" and type(act) in (nn.GELU, type(ACT2FN["gelu"]))


def _laid_out(*linears: Any) -> tuple[Tensor, Tensor | None]:
    """Weight of one product for all `linears`, in the layout that oneDNN chooses, and their biases."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    return torch.ops.mkldnn._reorder_linear_weight(weight), _bias(linears)


def _bias(linears: Sequence[Any]) -> Tensor | None:
    if len({linear.bias is None for linear in linears}) > 1:
        raise NotImplementedError
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return torch.cat(biases) if biases else None


def _merged(linears: Sequence[Any], quantise: bool) -> Product:
    """One product for several of the same input; their weights become parts of one matrix."""
    if not all(type(linear) is nn.Linear for linear in linears):
        raise NotImplementedError  # low-rank additions, bitsandbytes' weights
    bias = _bias(linears)
    if quantise:
        return quantised(torch.cat([linear.weight for linear in linears]), bias)
    if len(linears) == 1:
        weight = linears[0].weight
    else:
        weight = torch.cat([linear.weight for linear in linears])
        for linear, part in zip(linears, weight.split([x.out_features for x in linears]), strict=True):
            linear.weight = nn.Parameter(part, requires_grad=False)  # so that memory holds them once
    return lambda x: F.linear(x, weight, bias)


def quantised(weight: Tensor, bias: Tensor | None) -> Product:
    """x -> x W + b in 8-bit integers: weights with a scale a row, inputs with one a call (dynamic quantisation)."""
    scales = (weight.abs().amax(1) / 127).clamp(min=1e-12).double()
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():  # torch means to make such tensors otherwise one day
        warnings.simplefilter("ignore")
        integers = torch.quantize_per_channel(weight.detach().float(), scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(integers, bias)
    # Inputs in 7 bits: sums of 8-bit products run over in the instructions of processors without VNNI.
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, True)

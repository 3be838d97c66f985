"""The common decoder and encoder written out for inference on packs: fewer and larger products than transformers'.

Queries, keys and values are one product, gate and up another; residuals are added by the product before them; on a
GPU rotation and gating are one kernel each. Whether a model is of such a shape is read from its modules, and whether
the states come out the same is tried (`PackedModel`), so that an unknown variation runs in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.items.encoders.pack import Pack
from hllm.items.encoders.packed_attention import attend
from hllm.items.encoders.pooling import of_layers
from hllm.items.encoders.products import Products

_DECODER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_DECODER_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
_ENCODER = {"attention", "intermediate", "output"}


def fast_form(model: nn.Module, quantise: bool = False) -> FastDecoder | FastEncoder | None:
    """`model` written out, sharing its weights; None for one of another shape.

    quantise  weights are held in 8 bits, a scale a row, and products run in integers (CPU; inputs are scaled as
              they come). The model's own weights stay as they are
    """
    for kind in (FastDecoder, FastEncoder):
        try:
            return kind(model, quantise)
        except (AttributeError, NotImplementedError):
            continue
    return None


class FastDecoder:
    """Llama and what is built like it (Mistral, Qwen, SmolLM2, ...): norm, attention, norm, gated feed-forward."""

    def __init__(self, model: Any, quantise: bool) -> None:
        self.embed, self.rotary = model.embed_tokens, model.rotary_emb
        self.norm = _Norm(model.norm)
        products = Products(_linears(model.layers), quantise)
        self.blocks = [_DecoderBlock(layer, products) for layer in model.layers]

    def __call__(self, pack: Pack, ids: Tensor, shift: int, layers: str) -> Tensor:
        """States (T, d) of `layers` (see `of_layers`) of token `ids` int64 (T,), positions from `shift` on."""
        x = self.embed(ids)
        cos, sin = (part[0] for part in self.rotary(x.unsqueeze(0), (pack.positions + shift).unsqueeze(0)))
        states = [x]
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, pack)
            if layers and i < len(self.blocks) - 1:
                states.append(x)
        return of_layers(self.norm(x), [*states, self.norm(x)] if layers else [], layers)


class _DecoderBlock:
    def __init__(self, layer: Any, products: Products) -> None:
        attn, mlp = layer.self_attn, layer.mlp
        known = _names(layer) <= _DECODER and _names(attn) <= _DECODER_ATTENTION
        if not known or not isinstance(mlp.act_fn, nn.SiLU | type(_silu())):
            raise NotImplementedError
        self.before, self.between = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.q_norm, self.k_norm = (
            _Norm(getattr(attn, name)) if hasattr(attn, name) else None for name in ("q_norm", "k_norm")
        )
        self.qkv = products.merged(attn.q_proj, attn.k_proj, attn.v_proj)
        self.out, self.down = products.added(attn.o_proj), products.added(mlp.down_proj)
        self.gate_up = products.gated(mlp.gate_proj, mlp.up_proj, gated)
        self.head = int(attn.head_dim)
        self.heads = [linear.out_features // self.head for linear in (attn.q_proj, attn.k_proj)]
        whole = getattr(attn.config, "sliding_window", None)
        self.scale, self.window = float(attn.scaling), getattr(attn, "sliding_window", whole)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, pack: Pack) -> Tensor:
        heads = self.qkv(self.before(x)).unflatten(-1, (-1, self.head))  # (T, H + 2 Hk, D)
        turned, v = heads.tensor_split([sum(self.heads)], 1)
        if x.device.type == "cpu" and not self.q_norm:
            q, k = rotated(turned, cos, sin).split(self.heads, 1)
        else:
            q, k = turned.split(self.heads, 1)
            if self.q_norm and self.k_norm:
                q, k = self.q_norm(q), self.k_norm(k)
            q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        attended = attended_to(q, k, v, pack, True, self.window, self.scale)
        x = self.out(attended.flatten(1), x)
        return self.down(self.gate_up(self.between(x)), x)


class FastEncoder:
    """BERT and what is built like it (MiniLM, E5, BGE, GTE, RoBERTa): attention, norm, feed-forward, norm."""

    def __init__(self, model: Any, quantise: bool) -> None:
        self.embed = model.embeddings
        if getattr(model.config, "is_decoder", False):
            raise NotImplementedError
        products = Products(_linears(model.encoder.layer), quantise)
        self.blocks = [_EncoderBlock(layer, products) for layer in model.encoder.layer]

    def __call__(self, pack: Pack, ids: Tensor, shift: int, layers: str) -> Tensor:
        """As of `FastDecoder`."""
        positions = (pack.positions + shift).unsqueeze(0)
        x = self.embed(
            input_ids=ids.unsqueeze(0), position_ids=positions, token_type_ids=torch.zeros_like(positions)
        )[0]
        states = [x]
        for block in self.blocks:
            x = block(x, pack)
            if layers:
                states.append(x)
        return of_layers(x, states, layers)


class _EncoderBlock:
    def __init__(self, layer: Any, products: Products) -> None:
        own, after = layer.attention.self, layer.attention.output
        if not _names(layer) <= _ENCODER or getattr(own, "position_embedding_type", "absolute") != "absolute":
            raise NotImplementedError
        self.qkv = products.merged(own.query, own.key, own.value)
        self.heads, self.head = int(own.num_attention_heads), int(own.attention_head_size)
        self.out, self.down = products.added(after.dense), products.added(layer.output.dense)
        between = layer.intermediate
        self.up = products.activated(between.dense, between.intermediate_act_fn)
        self.norms = after.LayerNorm, layer.output.LayerNorm
        if not all(type(norm) is nn.LayerNorm for norm in self.norms):
            raise NotImplementedError

    def __call__(self, x: Tensor, pack: Pack) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, self.head).unbind(1)
        attended = attended_to(q, k, v, pack, False, None, self.head**-0.5)
        x = self.norms[0](self.out(attended.flatten(1), x))
        return self.norms[1](self.down(self.up(x), x))


@dataclass(eq=False)
class _Norm:
    """Root-mean-square norm over the last dimension."""

    module: Any

    def __post_init__(self) -> None:
        self.weight = self.module.weight
        self.eps = float(getattr(self.module, "variance_epsilon", getattr(self.module, "eps", 0.0)))
        if "RMSNorm" not in type(self.module).__name__ or self.weight.dim() != 1:
            raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        if x.is_cuda or x.dtype == torch.float64:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = x.float()  # on a CPU three passes over the numbers; torch's own takes six
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        wide = wide * scale if wide is x else wide.mul_(scale)
        return wide.mul_(self.weight).to(x.dtype)


def attended_to(
    q: Tensor, k: Tensor, v: Tensor, pack: Pack, causal: bool, window: int | None, scale: float
) -> Tensor:
    """As `attend`, of short texts on a GPU by a kernel of their own."""
    if q.is_cuda:
        from hllm.items.encoders import short_texts

        if short_texts.takes(q, k, v, pack):
            return short_texts.attend_short(q, k, v, pack, causal, window, scale)
    return attend(q, k, v, pack, causal, window, scale)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su and others, 2021) on x (T, H, D), cos and sin (T, D) of equal halves; may be in place."""
    dim = x.shape[2]
    if x.is_cuda and dim & (dim - 1) == 0 and x.stride()[1:] == (dim, 1):
        from hllm.items.encoders.fast_kernels import rotate_

        return rotate_(x, cos.contiguous(), sin.contiguous())
    half = dim // 2
    first, second = x[..., :half], x[..., half:]
    c, s = cos[:, None, :half], sin[:, None, :half]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(first, c, out=out[..., :half]).addcmul_(second, s, value=-1)
    torch.mul(second, c, out=out[..., half:]).addcmul_(first, s)
    return out


def gated(x: Tensor) -> Tensor:
    """silu(gate) * up (T, F) of `x` (T, 2 F), gate and up side by side."""
    if x.is_cuda:
        from hllm.items.encoders.fast_kernels import silu_times

        return silu_times(x)
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _linears(layers: nn.Module) -> list[nn.Module]:
    return [module for module in layers.modules() if isinstance(module, nn.Linear)]


def _silu() -> Any:
    from transformers.activations import ACT2FN

    return ACT2FN["silu"]


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}

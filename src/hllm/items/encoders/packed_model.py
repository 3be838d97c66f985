"""A transformers model run on packs: sequences end to end, without padding, never seeing each other.

Whether a family carries that is tried, not assumed: two short sequences in one pack must come out as
they do alone. Families that do not (position biases of their own, an attention that does not go through
transformers' interface) are run on padded rectangles; `reason` says why.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hllm.items.encoders import packed_attention
from hllm.items.encoders.backbones import hidden_size, quiet, table_rows
from hllm.items.encoders.pack import Pack
from hllm.items.encoders.pooling import states_of
from hllm.packing import pad, unpad

if TYPE_CHECKING:
    from hllm.items.encoders.fast import FastDecoder, FastEncoder

# Largest relative difference at which two ways of computing states count as the same.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class PackedModel(nn.Module):
    """`model` (a transformers PreTrainedModel without head), whose attention is switched to packs.

    packed     whether packs are carried; otherwise sequences are padded, `reason` (str) says why
    causal     whether a token's state depends on the tokens before it alone
    relative   whether only differences of position ids matter (rotary embeddings)
    dim        width of the hidden states
    layers     which states are returned (see `states_of`); "": the last layer's
    """

    def __init__(self, model: nn.Module, pad_id: int = 0, layers: str = "") -> None:
        super().__init__()
        self.model, self.pad_id, self.layers = model, pad_id, layers
        self.dim = hidden_size(model.config)
        accepted = inspect.signature(model.forward).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        self._takes_positions = "position_ids" in accepted
        self._takes_types = "token_type_ids" in accepted and bool(getattr(model.config, "type_vocab_size", 0))
        self._no_cache = {"use_cache": False} if "use_cache" in accepted else {}
        self.fast: FastDecoder | FastEncoder | None = None
        self.shift = 0  # first position id: RoBERTa counts from the padding id on
        self.reason = "" if self._takes_positions and open_ended else "no position_ids or keyword arguments"
        self.packed = not self.reason
        self._try()

    def forward(self, pack: Pack, ids: Tensor | None = None, embeds: Tensor | None = None) -> Tensor:
        """Hidden states (T, dim) after the final norm of token `ids` int64 (T,) or `embeds` (T, dim)."""
        if not self.packed:
            return self._padded(pack, ids, embeds)
        if self.fast is not None and ids is not None and not torch.is_grad_enabled():
            return self.fast(pack, ids, self.shift, self.layers)
        extra: dict[str, Any] = {"position_ids": (pack.positions + self.shift).unsqueeze(0), "pack": pack}
        if self._takes_types:
            extra["token_type_ids"] = torch.zeros_like(extra["position_ids"])
        return self._call(ids, embeds, lambda x: x.unsqueeze(0), **extra)[0]

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings (T, dim) of token ids, as the model takes them for `embeds`."""
        return self.model.get_input_embeddings()(ids)  # type: ignore[operator]

    @torch.no_grad()
    def speed_up(self, quantise: bool = False) -> bool:
        """Run without gradient in the written-out form (fast.py) from now on, if the model has one and it gives the
        same states; `quantise` for one in 8-bit integers, whose states are its own. True where it does."""
        from hllm.items.encoders.fast import fast_form

        fast = fast_form(self.model, quantise) if self.packed else None
        if fast is None:
            return False
        device = next(self.model.parameters()).device
        ids = (torch.arange(19, device=device) * 37 + 11).remainder(table_rows(self.model) or 4)
        pack = Pack([5, 9, 5], device)
        own = self(pack, ids)
        try:
            same = quantise or _near(fast(pack, ids, self.shift, self.layers), own)
        except Exception:  # a variation that looked the same; no Triton, or none for this card
            same = False
        if same:
            self.fast = fast
        return same

    def can_checkpoint(self) -> bool:
        """Whether the model's layers can be run again in the backward pass."""
        return bool(getattr(self.model, "supports_gradient_checkpointing", False))

    @contextlib.contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Forward passes inside keep the layers' inputs alone, in training mode."""
        model: Any = self.model
        # What newer releases of transformers call it, or all others.
        name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
        try:
            yield
        finally:
            getattr(model, f"{name}_checkpointing_disable")()

    def _call(self, ids: Tensor | None, embeds: Tensor | None, shape: Any, **extra: Any) -> Tensor:
        inputs = {"input_ids": shape(ids)} if embeds is None else {"inputs_embeds": shape(embeds)}
        if self.layers:
            extra["output_hidden_states"] = True
        return states_of(self.model(**inputs, **self._no_cache, **extra), self.layers)

    def _padded(self, pack: Pack, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        assert not pack.prefix, "a padded row has its own prefix"
        offsets, (longest, n) = pack.offsets, (max(pack.lengths), len(pack.lengths))
        lengths = torch.tensor(pack.lengths, device=pack.device)
        extra = {"attention_mask": (torch.arange(longest, device=pack.device) < lengths.unsqueeze(1)).long()}
        if pack.starts is not None and self._takes_positions:
            extra["position_ids"] = pad(pack.positions + self.shift, offsets)
        hidden = self._call(
            ids, embeds, lambda x: pad(x, offsets, value=self.pad_id if ids is x else 0), **extra
        )
        assert hidden.shape[:2] == (n, longest)
        return unpad(hidden, offsets)

    @torch.no_grad()
    def _try(self) -> None:
        """Find out what the model carries, on three short texts. Draws no random number."""
        parameter = next(self.model.parameters())
        device, was_training = parameter.device, self.model.training
        size = self.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        ids = (torch.arange(19, device=device) * 37 + 11) % size
        ids = torch.where(ids == self.pad_id, (ids + 1) % size, ids)
        self.model.eval()
        with quiet(bars_too=False):
            plain = torch.cat([self._plain(part) for part in ids.split([5, 9, 5])])
            changed = ids.clone()
            changed[4] = (changed[4] + 1) % size
            self.causal = self._same(self._plain(changed[:5])[:4], plain[:4])
            if self.packed:
                self._try_packs(ids, plain, device)
            self.relative = self._takes_positions and self._is_relative(ids[:9], device)
        self.model.train(was_training)

    def _try_packs(self, ids: Tensor, plain: Tensor, device: torch.device) -> None:
        """Switch to packed attention if it gives the `plain` states, otherwise back."""
        config: Any = self.model.config
        before = config._attn_implementation
        try:
            self.model.set_attn_implementation(packed_attention.register())  # type: ignore[operator]
            if config._attn_implementation != packed_attention.NAME:
                raise NotImplementedError("its attention is not behind transformers' interface")
            for shift in (0, self.pad_id + 1):
                self.shift = shift
                if self._same(self(Pack([5, 9, 5], device), ids), plain):
                    return
            raise NotImplementedError("packed states differ from those of each sequence alone")
        except Exception as err:  # each architecture fails in its own way
            self.reason = " ".join(str(err).split())[:200] or type(err).__name__
            self.packed, self.shift = False, 0
            if config._attn_implementation != before:
                self.model.set_attn_implementation(before)  # type: ignore[operator]

    def _is_relative(self, ids: Tensor, device: torch.device) -> bool:
        try:
            first, later = (self(Pack([9], device, starts=torch.tensor([s])), ids) for s in (0, 5))
        except Exception:  # as above; without positions to shift nothing is lost
            return False
        return self._same(later, first)

    def _plain(self, ids: Tensor) -> Tensor:
        """States (n, dim) of one text alone, in the model's own way."""
        return self._call(ids, None, lambda x: x.unsqueeze(0))[0]

    @staticmethod
    def _same(a: Tensor, b: Tensor) -> bool:
        tolerance = TOLERANCE.get(b.dtype, 1e-5)
        return bool((a - b).abs().max() <= tolerance * b.abs().max())


def _near(a: Tensor, b: Tensor) -> bool:
    """Whether two forms of one model give the same states (T, dim). In half precision most tokens decide: what is
    rounded otherwise grows through the blocks, in a few tokens, as the first, to more than what a form lacks."""
    furthest = (a - b).abs().amax(1) / b.abs().max()
    half = b.dtype in (torch.bfloat16, torch.float16)
    return bool((furthest.median() if half else furthest.max()) <= TOLERANCE.get(b.dtype, 1e-5))

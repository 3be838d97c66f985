"""The tokens that all texts of a catalogue begin with, run once.

With the official prompt 10 of an item's 26 tokens are the same for every item. A causal model's
keys, values and hidden states there do not depend on what follows, so they are computed once and
every batch continues from them.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hllm.items.encoders.backbones import Backbone, quiet

MIN_TOKENS = 4  # a shorter prefix is not worth the copying of keys and values
# Largest relative difference, from the plain way, at which a model counts as able to do this.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def common_prefix(flat: np.ndarray, offsets: np.ndarray) -> int:
    """Number of tokens that all packed texts share at their start, leaving each at least one of its own."""
    starts, longest = offsets[:-1], int(np.diff(offsets).min()) - 1
    for n in range(longest):
        column = flat[starts + n]
        if (column != column[0]).any():
            return n
    return max(longest, 0)


@dataclass(frozen=True)
class SharedPrefix:
    """Keys, values (`cache`) and hidden states (1, n_tokens, dim) of a prefix."""

    backbone: Backbone
    cache: Any
    states: Tensor
    argument: str  # the model's name for a cache; it changed within transformers 5

    @property
    def n_tokens(self) -> int:
        return self.states.shape[1]

    def hidden(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (n, n_tokens + length, dim) and mask of the prefix followed by `ids` (n, length)."""
        n = ids.shape[0]
        mask = torch.cat((mask.new_ones(n, self.n_tokens), mask), dim=1)
        cache = copy.deepcopy(self.cache)  # a forward appends to it
        cache.batch_repeat_interleave(n)
        out = self.backbone.hidden(ids, mask, use_cache=True, **{self.argument: cache})
        return torch.cat((self.states.expand(n, -1, -1), self.backbone.states(out)), dim=1), mask


def share_prefix(backbone: Backbone, ids: Tensor, mask: Tensor, n_tokens: int) -> SharedPrefix | None:
    """Run the first `n_tokens` of `ids` once; None if this model cannot continue from them.

    `ids` and `mask` (n, length) are a few texts, right-padded, on which the two ways are compared:
    encoders, whose early tokens see the later ones, and models with a cache of another kind fail that.
    """
    if n_tokens < MIN_TOKENS:
        return None
    accepted = inspect.signature(backbone.model.forward).parameters
    argument = next((name for name in ("cache", "past_key_values") if name in accepted), None)
    if argument is None:
        return None
    try:
        with quiet():
            out = backbone.hidden(ids[:1, :n_tokens], mask[:1, :n_tokens], use_cache=True)
            prefix = SharedPrefix(backbone, getattr(out, argument), backbone.states(out), argument)
            shared, _ = prefix.hidden(ids[:, n_tokens:], mask[:, n_tokens:])
    except Exception:  # models of others answer a cache they do not know with any error at all
        return None
    plain = backbone.states(backbone.hidden(ids, mask))
    real = mask.bool()
    scale = plain[real].abs().max()
    same = (shared[real] - plain[real]).abs().max() <= _TOLERANCE[plain.dtype] * scale
    return prefix if bool(same) else None

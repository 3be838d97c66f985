"""Texts as token ids, tokenised once and kept ragged: one flat array plus offsets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hllm.errors import DataError
from hllm.items.encoders.prefix import common_prefix
from hllm.packing import flat_index, lengths_of

if TYPE_CHECKING:
    from hllm.items.encoders.backbones import Backbone


@dataclass(frozen=True)
class Ragged:
    """Token ids int32 (t,) of n texts laid end to end, and offsets int64 (n + 1,)."""

    flat: Tensor
    offsets: Tensor

    @property
    def lengths(self) -> Tensor:
        """int64 (n,) on the device of the offsets."""
        return lengths_of(self.offsets)

    def take(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Ids int64 (t,) of the texts `rows` int64 (m,), whose `lengths` (m,) are known on the CPU."""
        starts = self.offsets[rows.to(self.offsets.device)]
        return self.flat[flat_index(starts, lengths, self.flat.device)].long()

    def append(self, more: Ragged) -> Ragged:
        """These texts, then `more` of them."""
        device = self.flat.device
        later = more.offsets[1:].to(device) + self.offsets[-1]
        return Ragged(torch.cat((self.flat, more.flat.to(device))), torch.cat((self.offsets, later)))

    @classmethod
    def of(cls, sequences: list[list[int]]) -> Ragged:
        """The ragged form of lists of ids; a list may be empty."""
        lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(sequences), dtype=np.int32, count=int(lengths.sum()))
        return cls(torch.from_numpy(flat), torch.from_numpy(np.concatenate(([0], lengths.cumsum()))))


def token_ids(backbone: Backbone, texts: list[str], **options: Any) -> list[list[int]]:
    """Ids of each text as the tokenizer gives them, at least one a text."""
    if not texts:
        return []
    tokenizer = backbone.tokenizer
    tokenizer.truncation_side = "right"
    # A title that spells "</s>" is letters, not the token.
    options |= {"return_attention_mask": False, "verbose": False, "split_special_tokens": True}
    encoded = tokenizer(texts, **options)["input_ids"]
    # A text of nothing but characters unknown to the tokenizer may have no token at all.
    return [ids or [backbone.pad_id] for ids in encoded]


def prompt_prefix(backbone: Backbone, prompt: str, sequences: list[list[int]]) -> list[int]:
    """Tokens of `prompt` that every text begins with, those of texts added later too.

    Tokens at the prompt's end may join the text's first letters, so what is shared is tried on several
    beginnings and on all `sequences`, each of which keeps at least one token of its own.
    """
    if not prompt:
        return []
    probes = token_ids(backbone, [prompt + start for start in ("A", "z", "0", "(", " ", "é")])
    ragged = Ragged.of([*probes, *sequences])
    return probes[0][: common_prefix(ragged.flat.numpy(), ragged.offsets.numpy())]


def without_prefix(sequences: list[list[int]], prefix: list[int]) -> Ragged:
    """The ids that follow `prefix` in each of `sequences`; an empty one stays empty.

    Raises DataError for a text that begins otherwise."""
    n = len(prefix)
    for ids in sequences:
        if ids and ids[:n] != prefix:
            raise DataError(
                f"a text does not begin with the prompt's {n} tokens: its first letters change the prompt's last "
                "token; end the prompt with a space or a colon, and embed again"
            )
    return Ragged.of([ids[n:] for ids in sequences])

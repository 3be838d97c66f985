"""Texts cut to what is read of them, at their end or by field: every field then keeps its beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.items.encoders.tokens import token_ids
from hllm.text.budget import head, parse_budgets, water_level
from hllm.text.template import Marked

if TYPE_CHECKING:
    from hllm.items.encoders.backbones import Backbone

TRIED = 8  # texts that are read again to see how a tokenizer cuts
MOST_KEPT = 4  # tokens that a tokenizer may put after a text


@dataclass(frozen=True)
class Keep:
    """What texts keep of their fields.

    heads    a text that is too long loses the ends of its longest fields, not its own end
    budgets  the most tokens of a field, by name
    """

    heads: bool = False
    budgets: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Keep | None:
        """As a specification says; None where texts are only cut at their end."""
        budgets = spec.get("field_tokens", "none")
        keep = cls(spec.get("long_text") == "heads", {} if budgets == "none" else parse_budgets(budgets))
        return keep if keep.heads or keep.budgets else None


def tokenise(
    backbone: Backbone, texts: list[str], limit: int, keep: Keep | None = None
) -> tuple[list[list[int]], np.ndarray]:
    """Ids of each text, cut to `limit` tokens, and bool (n,): which were cut.

    Texts are tokenised whole, so that no token boundary depends on a prompt. Cutting takes the end of
    the text and keeps the special tokens that the tokenizer adds after it; `keep` says what is first taken of fields.
    """
    sequences = token_ids(backbone, texts)
    truncated = np.zeros(len(texts), dtype=bool)
    if keep is not None:
        truncated |= trim(backbone, texts, sequences, limit, keep)
    long = [i for i, ids in enumerate(sequences) if len(ids) > limit]
    if long:
        truncated[long] = True
        cut = _cut_end(backbone, [texts[i] for i in long], [sequences[i] for i in long], limit)
        for i, ids in zip(long, cut, strict=True):
            sequences[i] = ids
    return sequences, truncated


def _cut_end(
    backbone: Backbone, texts: Sequence[str], sequences: Sequence[list[int]], limit: int
) -> list[list[int]]:
    """The ids of `texts`, which are `sequences` when whole, as the tokenizer cuts them to `limit` tokens.

    How many tokens it keeps at the end is seen on a few texts; the others are then not read twice.
    """

    def read(some: Sequence[str]) -> list[list[int]]:
        return token_ids(backbone, list(some), truncation=True, max_length=limit)

    tried = read(texts[:TRIED])
    for kept in range(min(limit, MOST_KEPT) + 1):
        cut = [ids[: limit - kept] + ids[len(ids) - kept :] for ids in sequences]
        if cut[:TRIED] == tried:
            return cut
    return [*tried, *read(texts[TRIED:])]


def trim(
    backbone: Backbone, texts: Sequence[str], sequences: list[list[int]], limit: int, keep: Keep
) -> np.ndarray:
    """Shorten `sequences`, the ids of `texts`, in place; returns bool (n,): of which something was left out.

    Tokens stay those of the whole text: some are left out, none is made anew. Tokens outside the fields (prompt,
    names, special tokens) always stay. A tokenizer that does not say where its tokens stand (one without a fast form)
    is given shorter and shorter texts.
    """
    cut = np.zeros(len(texts), dtype=bool)
    for i, text in enumerate(texts):
        long = keep.heads and len(sequences[i]) > limit
        if not isinstance(text, Marked) or not (
            long or any(name in keep.budgets for name, *_ in text.fields)
        ):
            continue
        room = limit if keep.heads else len(sequences[i])
        if backbone.tokenizer.is_fast:
            shorter = _kept(backbone, text, room, limit, keep)
        else:
            shorter = _retried(backbone, text, room, limit, keep)
        cut[i] = len(shorter) < len(sequences[i])
        sequences[i] = shorter
    return cut


def _kept(backbone: Backbone, text: Marked, room: int, limit: int, keep: Keep) -> list[int]:
    """The tokens of `text` that stay, at most `room` where the fields can spare as many; over `limit` the end goes."""
    encoded = backbone.tokenizer(
        str(text), return_offsets_mapping=True, split_special_tokens=True, verbose=False
    )
    ids, places = np.array(encoded["input_ids"]), np.array(encoded["offset_mapping"]).reshape(-1, 2)
    owner = np.full(len(ids), -1)
    for number, (_, first, end) in enumerate(text.fields):
        # A token may begin with the space before a field; it belongs to what it ends in.
        owner[(places[:, 1] > first) & (places[:, 1] <= end) & (places[:, 1] > places[:, 0])] = number
    sizes = [int((owner == number).sum()) for number in range(len(text.fields))]
    allowed = _allowed(sizes, [name for name, *_ in text.fields], room - int((owner < 0).sum()), keep)
    stays = owner < 0
    for number, most in enumerate(allowed):
        stays[np.flatnonzero(owner == number)[:most]] = True
    if (over := int(stays.sum()) - limit) > 0:
        of_text = np.flatnonzero(
            stays & (places[:, 1] > places[:, 0])
        )  # not what the tokenizer puts around it
        stays[of_text[-over:]] = False
    kept: list[int] = ids[stays].tolist()
    return kept


def _allowed(sizes: Sequence[int], names: Sequence[str], room: int, keep: Keep) -> list[int]:
    """Tokens that fields of these sizes keep, with `room` for all."""
    allowed = [min(size, keep.budgets.get(name, size)) for size, name in zip(sizes, names, strict=True)]
    if not keep.heads or sum(allowed) <= room:
        return allowed
    level = water_level(allowed, room)
    spare = room - sum(min(n, level) for n in allowed)
    out = []
    for n in allowed:  # what the level leaves goes to the first fields that were cut
        more = 1 if n > level and spare > 0 else 0
        spare -= more
        out.append(min(n, level + more))
    return out


def _retried(backbone: Backbone, text: Marked, room: int, limit: int, keep: Keep) -> list[int]:
    """The ids of `text` with its fields cut by estimated tokens, tighter until it fits `room`, and to `limit`."""
    sizes = [len(text[first:end].encode()) for _, first, end in text.fields]  # no tokenizer makes more
    names = [name for name, *_ in text.fields]
    share = room
    while True:
        allowed = _allowed(sizes, names, share, keep)
        shorter: list[str] = [text.shortened(allowed, head)]
        (ids,) = token_ids(backbone, shorter)
        if len(ids) <= room or share <= len(names):
            if len(ids) > limit:
                (ids,) = token_ids(backbone, shorter, truncation=True, max_length=limit)
            return ids
        share = max(share - max(len(ids) - room, 1), len(names))

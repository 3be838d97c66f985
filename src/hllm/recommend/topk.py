"""Exact top-k recommendations, from the engine and the very scores that `evaluate` uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hllm.evaluate.evaluation import device_of
from hllm.evaluate.ranking import BATCH_USERS, Ranker, RankOptions, TopK, top_k

if TYPE_CHECKING:
    from hllm.data.batches.queries import Queries
    from hllm.recommend.rules import Rules


def recommend(
    ranker: Ranker,
    queries: Queries,
    rules: Rules,
    k: int,
    *,
    max_len: int | None = None,
    device: torch.device | str | None = None,
    batch_users: int = BATCH_USERS,
    tile_items: int | None = None,
) -> TopK:
    """The best `k` items of each query under `rules`, by score, then by token.

    Fewer items allowed than k give fewer rows, never a filler; histories may be empty where the
    ranker can do without. Raises HLLMError where scores are not finite.
    """
    return top_k(ranker, queries, _options(ranker, rules, max_len, device, batch_users, tile_items), k)


def _options(
    ranker: Ranker,
    rules: Rules,
    max_len: int | None,
    device: torch.device | str | None,
    batch_users: int,
    tile_items: int | None,
) -> RankOptions:
    return RankOptions(
        candidates=rules.candidates,
        keep_seen=rules.keep_seen,
        max_len=max_len,
        device=device_of(ranker) if device is None else device,
        excluded=rules.excluded if len(rules.excluded[0]) else None,
        batch_users=batch_users,
        tile_items=tile_items,
    )

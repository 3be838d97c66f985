"""Example users for the report: their last items, what was held out, what was recommended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.data.loader import eval_queries
from hllm.errors import DataError
from hllm.recommend.queries import title_column

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.pipeline import Recommender

N_USERS, N_HISTORY, N_RECOMMENDED = 5, 6, 6


def title_of(data: Dataset) -> Callable[[Any], str]:
    """A function from item id to title; the id itself where there is none."""
    try:
        titles = data.items[title_column(data)].to_list()
    except DataError:
        titles = [None] * len(data.item_ids)
    by_id = dict(zip(data.item_ids, titles, strict=True))
    return lambda item_id: str(by_id.get(item_id) or item_id)


def example_users(recommender: Recommender, split: str = "test") -> list[dict[str, Any]]:
    """Five users spread evenly over the split, as plain data for `write_report`."""
    data = recommender.dataset
    assert data is not None
    if not len(data.queries.get(split, ())):
        return []
    queries = eval_queries(data, split)
    chosen = np.unique(np.linspace(0, len(queries) - 1, N_USERS + 2).round().astype(int)[1:-1])
    name, ids = title_of(data), data.item_ids
    frame = recommender.recommend(split=split, k=N_RECOMMENDED)
    examples = []
    for i in chosen:
        user = data.user_ids[queries.users[i]]
        tokens = np.asarray(
            queries.tokens[max(queries.starts[i], queries.ends[i] - N_HISTORY) : queries.ends[i]]
        )
        rows = frame.filter(frame["user_id"] == user).sort("rank").head(N_RECOMMENDED)
        target = ids[queries.targets[i] - 1]
        examples.append(
            {
                "user_id": user,
                "history": [{"item_id": ids[t - 1], "title": name(ids[t - 1])} for t in tokens],
                "recommended": [
                    {"item_id": item, "title": name(item), "score": round(float(score), 4)}
                    for item, score in zip(rows["item_id"], rows["score"], strict=True)
                ],
                "target": {"item_id": target, "title": name(target)},
            }
        )
    return examples

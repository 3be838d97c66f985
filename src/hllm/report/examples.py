"""Example users for the report: their last items, what was held out, what was recommended."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.data.batches.queries import Queries, eval_queries
from hllm.evaluate.evaluation import parse_max_len
from hllm.recommend.queries import title_of
from hllm.recommend.rules import make_rules
from hllm.recommend.topk import recommend

if TYPE_CHECKING:
    from hllm.pipeline import Recommender

N_USERS, N_HISTORY, N_RECOMMENDED = 5, 6, 6


def example_users(recommender: Recommender, split: str = "test") -> list[dict[str, Any]]:
    """Five users spread evenly over the split, as plain data for `write_report`."""
    network, data = recommender.network, recommender.dataset
    assert network is not None and data is not None
    if not len(data.queries.get(split, ())):
        return []
    queries = _spread(eval_queries(data, split))
    max_len = parse_max_len(recommender.config.training.max_len)
    top = recommend(network, queries, make_rules(data), N_RECOMMENDED, max_len=max_len)
    name, ids = title_of(data), data.item_ids

    def item(token: int) -> dict[str, Any]:
        return {"item_id": ids[token - 1], "title": name(ids[token - 1])}

    examples = []
    for i in range(len(queries)):
        shown = slice(max(queries.starts[i], queries.ends[i] - N_HISTORY), queries.ends[i])
        mine = top.rows == i
        examples.append(
            {
                "user_id": data.user_ids[queries.users[i]],
                "history": [item(token) for token in np.asarray(queries.tokens[shown])],
                "recommended": [
                    {**item(token), "score": round(float(score), 4)}
                    for token, score in zip(top.tokens[mine], top.scores[mine], strict=True)
                ],
                "target": item(queries.targets[i]),
            }
        )
    return examples


def _spread(queries: Queries) -> Queries:
    """At most `N_USERS` of the queries, of different users as far as their spacing gives them."""
    chosen = np.unique(np.linspace(0, len(queries) - 1, N_USERS + 2).round().astype(int)[1:-1])
    picked = {name: getattr(queries, name)[chosen] for name in ("users", "targets", "starts", "ends")}
    return replace(queries, **picked)

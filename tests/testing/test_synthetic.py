"""The synthetic world: the same from a seed, learnable, and with everything a real catalogue has."""

from __future__ import annotations

import numpy as np
import polars as pl

from hllm.baselines.fit import fit_baseline
from hllm.evaluate.evaluation import evaluate
from hllm.testing import chain, world, world_tables


def test_a_seed_is_a_world() -> None:
    assert world(20).fingerprint == world(20).fingerprint
    assert world(20).fingerprint != world(20, seed=1).fingerprint


def test_sizes_ids_and_texts() -> None:
    interactions, items, users = world_tables(30, 25, 9, n_extra=2, string_ids=True)
    assert users.height == 30 and items.height == 27
    lengths = interactions.group_by("user_id").len()["len"]
    assert lengths.min() >= 4 and lengths.max() <= 9  # type: ignore[operator]
    assert interactions["item_id"].dtype == pl.String and items["item_id"][7] == "007"
    assert items["title"].null_count() == 1 and items["title"].n_unique() == 27
    gaps = interactions.group_by("user_id").agg((pl.col("timestamp").diff().drop_nulls() > 0).all())
    assert gaps["timestamp"].all()
    assert world_tables(5)[0]["item_id"].dtype == pl.Int64


def test_order_can_be_learned() -> None:
    data = world(150)
    popularity, markov = (
        evaluate(fit_baseline(n, data), data, bootstrap=0) for n in ("popularity", "markov")
    )
    assert markov["ndcg@10"] > 2 * popularity["ndcg@10"]


def test_a_chain_goes_on_by_one() -> None:
    data = chain(10, 7, 6)
    ids = np.array(data.item_ids)[data.tokens - 1].reshape(10, 6)
    assert (np.diff(ids, axis=1) % 7 == 1).all()

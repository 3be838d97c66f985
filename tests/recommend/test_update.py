"""A run brought up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from hllm.data.dataset import Dataset
from hllm.errors import ConfigError
from hllm.pipeline import Recommender
from hllm.testing import world_tables

SMALL: dict[str, Any] = {"d_model": 16, "n_layers": 1, "n_heads": 2, "epochs": 4, "batch_tokens": 200}
TEXT = {"item_llm": "random", "adapter_hidden": 16, "whiten_rank": 8}


def fit(preset: str, **settings: Any) -> Recommender:
    data = Dataset.from_tables(*world_tables(n_users=24, n_items=25), time_unit="s", name="world")
    return Recommender.from_preset(preset, **SMALL, **settings).fit(data, device="cpu", progress=False)


def later(rec: Recommender, *rows: tuple[int, int]) -> pl.DataFrame:
    assert rec.dataset is not None
    end = int(rec.dataset.times.max())
    table = [(user, item, end + 60 * at) for at, (user, item) in enumerate(rows, start=1)]
    return pl.DataFrame(table, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture
def texts(tmp_path: Path) -> Recommender:
    return fit("demo", **TEXT)


def ranks_of_test(rec: Recommender) -> dict[str, float]:
    """What depends on the ranks of held-out items alone; popularity counts the new events too."""
    values = rec.evaluate(split="test", bootstrap=0).values
    return {name: value for name, value in values.items() if "popularity" not in name}


NEW_ITEMS = pl.DataFrame(
    {"item_id": [10, 900], "title": ["x", "Fresh Snow (2024)"], "genres": ["y", "Comedy"]}
)


def test_without_training(texts: Recommender, tmp_path: Path) -> None:
    assert texts.network is not None
    before = {name: p.detach().clone() for name, p in texts.network.model.named_parameters()}
    fresh = texts.recommend(history=[[12, 17]], k=30, keep_seen=True)
    test = ranks_of_test(texts)
    new = later(texts, (777, 12), (777, 17), (100, 900), (100, 4242))
    counts = texts.update(new, NEW_ITEMS, device="cpu", progress=False)
    assert counts == {"events": 3, "users": 1, "items": 1, "known_events": 0, "events_of_unknown_items": 1}
    assert all(torch.equal(p, before[name]) for name, p in texts.network.model.named_parameters())
    known = texts.recommend([777], k=31, keep_seen=True).filter(pl.col("item_id") != 900)
    assert known["item_id"].to_list() == fresh["item_id"].to_list()
    assert 900 in texts.recommend([101], k=40)["item_id"].to_list()
    assert 900 not in texts.recommend([100], k=40)["item_id"].to_list()  # seen
    assert ranks_of_test(texts) == test  # held-out events are where they were
    texts.save_pretrained(tmp_path / "run2")
    again = Recommender.from_pretrained(tmp_path / "run2", "cpu")
    assert again.recommend(k=5).equals(texts.recommend(k=5))
    (step,) = again.record.lineage
    assert step["events"] == 3 and step["trained"] is False and step["parent"] != again.record.created


@pytest.mark.parametrize("preset", ["demo", "sasrec"])
def test_training_goes_on_and_never_sees_the_test(preset: str) -> None:
    rec = fit(preset, **(TEXT if preset == "demo" else {}))
    assert rec.network is not None and rec.dataset is not None
    data, old = rec.dataset, {n: p.detach().clone() for n, p in rec.network.named_parameters()}
    tests = [int(data.tokens[p]) for p in data.queries["test"]]
    rows = [(user, 10 + i) for user in (100, 101, 102, 103) for i in range(4)] + [(103, 900)] * 2
    counts = rec.update(
        later(rec, *rows), NEW_ITEMS, train=True, settings={"epochs": 2}, device="cpu", progress=False
    )
    assert counts["items"] == 1 and counts["events_of_unknown_items"] == 0
    assert rec.config.training.epochs == 2
    moved = [n for n, p in rec.network.named_parameters() if n in old and p.shape == old[n].shape]
    assert any(not torch.equal(rec.network.get_parameter(n), old[n]) for n in moved)
    # From the weights it had, not afresh: they are still close to what they were.
    for name in moved:
        if name.endswith("weight") and old[name].norm() > 0:
            assert (rec.network.get_parameter(name) - old[name]).norm() < 0.7 * old[name].norm(), name
    now = rec.dataset
    assert [int(now.tokens[p]) for p in now.queries["test"]] == tests
    assert not now.train_mask[np.concatenate(list(now.queries.values()))].any()
    assert 900 in rec.recommend([101], k=40)["item_id"].to_list()
    assert rec.record.lineage[0]["trained"] is True
    assert rec.evaluate(split="test", bootstrap=0).values["ndcg@10"] >= 0


def test_ids_alone_cannot_take_items_untrained() -> None:
    rec = fit("sasrec")
    counts = rec.update(later(rec, (100, 900), (100, 12)), NEW_ITEMS, device="cpu")
    assert counts["items"] == 0 and counts["events"] == 1 and counts["events_of_unknown_items"] == 1
    with pytest.raises(ConfigError, match="give train=True"):
        rec.update(later(rec, (100, 12)), settings={"epochs": 2}, device="cpu")

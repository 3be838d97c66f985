"""Explanations by leaving events out, against scores asked for one by one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from hllm.errors import ConfigError, DataError
from hllm.items.source.text_table import TextTable
from hllm.pipeline import Recommender
from hllm.recommend.explain import in_words
from hllm.testing import world


def score(rec: Recommender, history: list[int], item: int) -> float:
    frame = rec.recommend(history=[history], k=1000, keep_seen=True)
    return dict(zip(frame["item_id"].to_list(), frame["score"].to_list(), strict=True))[item]


def test_each_event_is_left_out_once(rec: Recommender) -> None:
    history = [10, 15, 21, 12, 17]
    found = rec.explain(history=history, item=30)
    assert found.score == pytest.approx(score(rec, history, 30), abs=1e-5)
    assert found.events == 5 and found.item_id == 30
    top = rec.recommend(history=[history], k=1000)
    assert found.rank == top.filter(top["item_id"] == 30)["rank"][0]
    assert sorted(reason.place for reason in found.reasons) == [1, 2, 3, 4, 5]
    rises = 0.0
    for reason in found.reasons:
        rest = [item for item in history if item != reason.item_id]
        assert reason.change == pytest.approx(found.score - score(rec, rest, 30), abs=1e-4)
        assert reason.time is None and -1.0001 <= reason.similarity <= 1.0001
        rises += max(reason.change or 0.0, 0.0)
    for reason in found.reasons:
        assert reason.share == pytest.approx(max(reason.change or 0.0, 0.0) / rises, abs=1e-6)
    assert [r.share for r in found.reasons] == sorted((r.share for r in found.reasons), reverse=True)
    like = rec.similar(30, k=1000)
    cosine = dict(zip(like["item_id"].to_list(), like["score"].to_list(), strict=True))
    assert all(r.similarity == pytest.approx(cosine[r.item_id], abs=1e-5) for r in found.reasons)


def test_known_users_in_words(rec: Recommender) -> None:
    found = rec.explain(100, 30)
    assert all(reason.time is not None for reason in found.reasons)
    lines = in_words(found, "user 100")
    assert lines[0].startswith(f"{found.title} (30) for user 100: score ")
    assert lines[-1].startswith("nearest in the history: ")
    assert 3 <= len(lines) <= 7 and any("without it" in line for line in lines)
    assert json.loads(json.dumps(found.as_dict()))["reasons"][0]["share"] == found.reasons[0].share
    few = rec.explain(100, 30, most=2)
    assert sorted(reason.place for reason in few.reasons) == [1, 2]


def test_one_event_is_the_whole_reason(rec: Recommender) -> None:
    found = rec.explain(history=[10], item=30)
    assert [(r.share, r.change) for r in found.reasons] == [(1.0, None)]
    assert "the only event" in in_words(found, "you")[1]
    assert rec.explain(history=[10], item=10).rank is None  # seen


def test_what_cannot_be_explained(rec: Recommender) -> None:
    with pytest.raises(DataError, match="unknown user_id 7"):
        rec.explain(7, 30)
    with pytest.raises(DataError, match="unknown item_id 999"):
        rec.explain(100, 999)
    with pytest.raises(DataError, match="history 0 is empty"):
        rec.explain(history=[], item=30)
    with pytest.raises(ConfigError, match="either a user"):
        rec.explain(item=30)


def test_what_times_and_text_add() -> None:
    settings = {
        "d_model": 16,
        "n_layers": 1,
        "n_heads": 2,
        "epochs": 1,
        "adapter_hidden": 16,
        "whiten_rank": 8,
    }
    rec = Recommender.from_preset("hstu", item_llm="random", **settings)
    rec.fit(world(), device="cpu", progress=False)
    assert rec.dataset is not None and rec.network is not None
    with torch.no_grad():
        biases = [p for name, p in rec.network.named_parameters() if "time" in name]
        for bias in biases:
            bias.normal_()
    assert biases
    item = rec.recommend([100], k=1)["item_id"][0]  # not in the history, which reads texts too
    found = rec.explain(100, item)
    events = sorted(found.reasons, key=lambda reason: -reason.place)
    untimed = rec.explain(history=[reason.item_id for reason in events], item=item)
    assert untimed.of_times is None
    assert found.of_times == pytest.approx(found.score - untimed.score, abs=1e-5) and found.of_times
    # The same table without the item's text, under the run's own weights.
    (table,) = [m for m in rec.network.source.modules() if isinstance(m, TextTable)]
    table.has_text[rec.dataset.token_of(item)] = False
    without = rec.explain(100, item)
    assert without.of_text is None
    assert found.of_text == pytest.approx(found.score - without.score, abs=1e-5) and found.of_text
    words = "\n".join(in_words(found, "user 100"))
    assert "the times of the events: the score" in words and "the text of the item: the score" in words


def test_ids_alone_have_no_text(rec: Recommender) -> None:
    found = rec.explain(100, 30)
    assert found.of_text is None and found.of_times is None
    assert "the text of the item" not in "".join(in_words(found, "user 100"))


@pytest.mark.parametrize("most", ["x", 2.5, 0, True])
def test_most_is_a_whole_number(rec: Recommender, most: Any) -> None:
    with pytest.raises(ConfigError, match="most="):
        rec.explain(100, 30, most=most)
    with pytest.raises(ConfigError, match="give the item to explain"):
        rec.explain(100)

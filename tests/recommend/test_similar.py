"""Items like an item or a text; history and text together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hllm.data.dataset import Dataset
from hllm.errors import ConfigError, DataError
from hllm.pipeline import Recommender
from hllm.recommend import answering
from hllm.testing import world_tables


@pytest.fixture(scope="module")
def texts() -> Recommender:
    """A run that knows items by the text of their title alone: equal texts, equal vectors."""
    data = Dataset.from_tables(*world_tables(n_users=20, n_items=25), text_fields=["title"], time_unit="s")
    settings = {
        "d_model": 16,
        "n_layers": 1,
        "n_heads": 2,
        "epochs": 1,
        "adapter_hidden": 16,
        "whiten_rank": 8,
    }
    rec = Recommender.from_preset("demo", item_llm="random", id_embedding=False, **settings)
    return rec.fit(data, device="cpu", progress=False)


def title(rec: Recommender, item: int) -> str:
    assert rec.dataset is not None
    return str(rec.dataset.items["title"][rec.dataset.token_of(item) - 1])


def test_items_like_an_item(rec: Recommender) -> None:
    assert rec.network is not None and rec.dataset is not None
    raw = rec.network.table().raw.double().numpy()
    unit = raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)
    n = rec.dataset.n_candidates
    cosines = unit[1 : n + 1] @ unit[rec.dataset.token_of(17)]
    order = [rec.dataset.item_ids[i] for i in np.argsort(-cosines) if rec.dataset.item_ids[i] != 17]
    frame = rec.similar(17, k=5)
    assert frame.columns == ["item_id", "score", "rank"]
    assert frame["item_id"].to_list() == order[:5]
    others = np.delete(cosines, rec.dataset.token_of(17) - 1)
    assert frame["score"].to_numpy() == pytest.approx(np.sort(others)[::-1][:5])
    assert rec.similar(17, k=4, exclude=order[:1])["item_id"].to_list() == order[1:5]
    assert len(rec.similar(17, k=9, only_items=[10, 11, 17])) == 2
    with pytest.raises(DataError, match="unknown item_id 999"):
        rec.similar(999)
    for wrong in ({}, {"item": 17, "text": "x"}):
        with pytest.raises(ConfigError, match="either an item"):
            rec.similar(**wrong)  # type: ignore[arg-type]


def test_a_text_is_read_once_for_many_calls(texts: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    made, read = [], answering.text_vector
    monkeypatch.setattr(answering, "text_vector", lambda *a, **b: made.append(a[2]) or read(*a, **b))
    assert texts.dataset is not None
    for user in texts.dataset.users["user_id"][:3]:
        texts.recommend([user], text="item 14", k=2)
    texts.similar(text="item 14")
    texts.similar(text="item 15")
    with pytest.raises(ConfigError, match="write what to look for"):
        texts.similar(text=np.zeros(2))  # type: ignore[arg-type]
    assert made[:2] == ["item 14", "item 15"]


def test_items_like_a_text(texts: Recommender) -> None:
    assert texts.network is not None
    before = {name: value.clone() for name, value in texts.network.state_dict().items()}
    frame = texts.similar(text=title(texts, 14), k=3)
    assert frame["item_id"][0] == 14 and frame["score"][0] == pytest.approx(1, abs=1e-5)
    assert texts.similar(14, k=2)["item_id"].to_list() == frame["item_id"].to_list()[1:]
    after = texts.network.state_dict()
    assert not any(module.training for module in texts.network.modules())
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_a_run_without_text_says_why(rec: Recommender) -> None:
    with pytest.raises(ConfigError, match=r"no text through an item LLM.*item_llm=smollm2-135m"):
        rec.similar(text="a quiet film")
    with pytest.raises(ConfigError, match="no text through an item LLM"):
        rec.recommend([100], text="a quiet film")


def test_search_by_text_and_taste(texts: Recommender) -> None:
    text = title(texts, 14)

    def scores(**options: object) -> dict[int, float]:
        frame = texts.recommend(history=[[10, 15]], k=100, keep_seen=True, **options)  # type: ignore[arg-type]
        return dict(zip(frame["item_id"].to_list(), frame["score"].to_list(), strict=True))

    taste, words = scores(), scores(text=text, text_weight=1)
    assert scores(text=text, text_weight=0) == pytest.approx(taste, abs=1e-4)
    assert max(words, key=words.__getitem__) == 14
    mean = {item: 0.7 * taste[item] + 0.3 * words[item] for item in taste}
    assert scores(text=text, text_weight=0.3) == pytest.approx(mean, abs=1e-4)
    both = texts.recommend(history=[[], [10, 15]], k=100, text=text, unknown="popular", keep_seen=True)
    assert both.filter(both["user_id"] == 0).height  # somebody new
    for bad in (2, "much", True):
        with pytest.raises(ConfigError, match="text_weight="):
            texts.recommend(history=[[10]], text=text, text_weight=bad)  # type: ignore[arg-type]
    assert texts.network is not None and not texts.network.training
    with pytest.raises(ConfigError, match="in words"):
        texts.similar(text="  ")

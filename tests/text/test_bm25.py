"""Which sentences of a long text are kept."""

import math

import polars as pl
import pytest

from hllm.text.bm25 import best_sentences, shorten, word_weights

BOILERPLATE = "Free shipping on all orders over ten dollars."
DESCRIPTION = f"{BOILERPLATE} {BOILERPLATE} The torque wrench has a ratchet head. Order today and save."
OTHERS = [f"{BOILERPLATE} Order today and save." for _ in range(5)]


def items() -> pl.DataFrame:
    return pl.DataFrame(
        {"title": ["Torque wrench", *["Lamp"] * 5], "description": [DESCRIPTION, *OTHERS], "price": [1.5] * 6}
    )


def test_the_sentence_that_tells_the_item_apart_is_kept() -> None:
    short = shorten(items(), ["title", "description"], 16)
    assert short["description"][0] == "The torque wrench has a ratchet head."
    assert short["title"].to_list() == items()["title"].to_list()
    assert short["price"].to_list() == [1.5] * 6


def test_texts_within_the_budget_are_left_alone() -> None:
    assert shorten(items(), ["title", "description"], 256).equals(items())


def test_kept_sentences_stay_in_their_order_and_fit() -> None:
    weights = {"torque": 3.0, "wrench": 3.0, "order": 2.0, "today": 2.0, "shipping": 0.5}
    kept = best_sentences(DESCRIPTION, 12, weights)
    assert kept == "The torque wrench has a ratchet head. Order today and save."
    assert best_sentences("One sentence alone without any end", 2, {}) == "One sentence alone without any end"
    assert best_sentences("aaa bbb. ccc ddd.", 0, {"ccc": 1.0}) == "ccc ddd."  # the best, whatever it costs


def test_weights_are_bm25s() -> None:
    """By Lucene's formula, k1 = 1.5, b = .75; a word of every text weighs least."""
    texts = [["rare", "word", "rare"], [], ["word"], ["other", "word"]]
    mean = sum(map(len, texts)) / len(texts)
    found = word_weights(texts, [0, 1, 3])
    for row, weights in zip([0, 1, 3], found, strict=True):
        assert set(weights) == set(texts[row])
        for word, weight in weights.items():
            df, tf = sum(word in text for text in texts), texts[row].count(word)
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            norm = 1.5 * (0.25 + 0.75 * len(texts[row]) / mean)
            assert weight == pytest.approx(idf * tf / (tf + norm), rel=1e-5)


def test_chinese_is_counted_by_characters() -> None:
    texts = ["这是一部关于友谊的电影。免费送货。免费送货。", "免费送货。", "免费送货。", "免费送货。"]
    frame = pl.DataFrame({"title": texts})
    assert shorten(frame, ["title"], 18)["title"][0] == "这是一部关于友谊的电影。"

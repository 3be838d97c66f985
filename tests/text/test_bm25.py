"""Which sentences of a long text are kept."""

import math

import polars as pl
import pytest

from hllm.text.bm25 import best_sentences, inverse_frequencies, shorten

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
    idf = inverse_frequencies([DESCRIPTION, *OTHERS])
    kept = best_sentences(DESCRIPTION, 11, DESCRIPTION, idf)
    assert kept == "The torque wrench has a ratchet head. Order today and save."
    assert (
        best_sentences("One sentence alone without any end", 2, "one", idf)
        == "One sentence alone without any end"
    )
    assert (
        best_sentences("aaa bbb. ccc ddd.", 0, "ccc", {"ccc": 1.0}) == "ccc ddd."
    )  # the best, whatever it costs


def test_scores_are_bm25s() -> None:
    """By hand: k1 = 1.2, b = .75, two sentences of mean length 2, a word of document frequency 1 of 2."""
    from collections import Counter

    from hllm.text.bm25 import _score

    idf = inverse_frequencies(["rare word", "word"])
    assert idf["rare"] == pytest.approx(math.log(1 + 1.5 / 1.5))
    norm = 1.2 * (0.25 + 0.75 * 2 / 2)
    expected = idf["rare"] * 2.2 / (1 + norm) * 2.2 / 2.2 + idf["word"] * 2.2 / (1 + norm) * 2.2 / 2.2
    assert _score(["rare", "word"], Counter({"rare": 1, "word": 1}), idf, 2.0) == pytest.approx(expected)


def test_chinese_is_counted_by_characters() -> None:
    texts = ["这是一部关于友谊的电影。免费送货。免费送货。", "免费送货。", "免费送货。", "免费送货。"]
    frame = pl.DataFrame({"title": texts})
    assert shorten(frame, ["title"], 18)["title"][0] == "这是一部关于友谊的电影。"

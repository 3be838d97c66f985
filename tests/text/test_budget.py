"""Room for every field: budgets, and ends cut so that the head of each field is kept."""

import polars as pl
import pytest

from hllm.errors import ConfigError, DataError
from hllm.text.budget import cut_fields, estimated_tokens, head, parse_budgets, water_level, written_budgets


def test_the_head_of_a_text_ends_at_a_word() -> None:
    text = "The Good, the Bad and the Uglyyyyyyyyy (1966)"
    assert head(text, 99) == text
    assert head(text, 6) == "The Good, the Bad and"
    assert head(text, 9) == "The Good, the Bad and the"
    assert head("Supercalifragilistic", 2) == "Supercalif"
    assert head("東京物語 1953", 3) == "東京物"
    assert all(estimated_tokens(head(text, n)) <= n for n in range(1, 30))


def test_room_is_shared_as_water_finds_its_level() -> None:
    assert water_level([3, 50, 80], 63) == 30
    assert water_level([3, 50, 80], 200) == 80
    assert water_level([9, 9, 9], 2) == 1
    assert water_level([], 5) == 1


def test_budgets_are_of_fields() -> None:
    assert parse_budgets("title=3, about=64") == {"title": 3, "about": 64}
    assert written_budgets({"b": 2, "a": 1}) == "a=1,b=2" and written_budgets({}) == "none"
    items = pl.DataFrame({"title": ["one two three four"], "tags": [["Drama", "War"]]})
    assert cut_fields(items, {"title": 2, "tags": 1}).row(0) == ("one two", "Drama")
    with pytest.raises(DataError, match=r"'titel' \(did you mean 'title'\?\)"):
        cut_fields(items, {"titel": 2})
    for bad in ("title", "title=0", "title=x", "=3", "title=1,title=2"):
        with pytest.raises(ConfigError, match="FIELD=TOKENS"):
            parse_budgets(bad)
    with pytest.raises(ConfigError, match="field_tokens"):
        written_budgets({"title": "many"})  # type: ignore[dict-item]

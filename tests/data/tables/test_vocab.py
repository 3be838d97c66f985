"""Codes and tokens: sorted, dense, complete."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hllm.data.tables.vocab import compress, encode, item_vocabulary, lookup
from hllm.errors import DataError


@given(st.lists(st.text(max_size=3), min_size=1))
def test_codes_of_strings_follow_python_order(values):
    distinct, codes = encode(pl.Series(values))
    assert distinct.to_list() == sorted(set(values))
    assert [distinct[int(c)] for c in codes] == values
    assert codes.dtype == np.int32


def test_codes_of_integers_sort_by_number():
    distinct, codes = encode(pl.Series([10, -2, 9, 10]))
    assert distinct.to_list() == [-2, 9, 10]
    assert codes.tolist() == [2, 0, 1, 2]


def test_compress_keeps_order():
    used, codes = compress(np.array([5, 2, 5], dtype=np.int32), 7)
    assert used.tolist() == [2, 5]
    assert codes.tolist() == [1, 0, 1] and codes.dtype == np.int32


def test_candidates_come_first_then_the_rest_of_the_catalogue():
    candidates = pl.Series(["b", "d"])
    vocabulary = item_vocabulary(candidates, pl.Series(["e", "d", "a", "e"]))
    assert vocabulary.to_list() == ["b", "d", "a", "e"]
    assert candidates.to_list() == ["b", "d"]  # the argument is not changed
    assert item_vocabulary(candidates, None).to_list() == ["b", "d"]


def test_lookup_accepts_the_other_type_only_for_exact_text():
    assert lookup({50: 1}, "50", "item_id") == 1
    assert lookup({"50": 1}, 50, "item_id") == 1
    assert lookup({50: 1}, np.int32(50), "item_id") == 1
    for value in ("050", "5.0", "+50", None, 5.5):
        with pytest.raises(DataError, match="unknown item_id"):
            lookup({50: 1}, value, "item_id")
    with pytest.raises(
        DataError, match="unknown user_id 'ghost'; 2 are known, such as 'u1', 'u2'; add history="
    ):
        lookup({"u1": 0, "u2": 1}, "ghost", "user_id", "; add history=")

"""Values of one column: what becomes an integer, what stays text, what is refused."""

from datetime import date, datetime
from decimal import Decimal

import polars as pl
import pytest

from hllm.data.tables.columns import canonical_ids, canonical_ratings, canonical_times
from hllm.errors import ConfigError, DataError


def ids(values, **kwargs):
    return canonical_ids(pl.Series("item_id", values, **kwargs), "interactions")


def times(values, unit=None, **kwargs):
    series, found = canonical_times(pl.Series("timestamp", values, **kwargs), unit)
    assert series.dtype == pl.Int64 and series.name == "timestamp"
    return series.to_list(), found


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([7, 1], pl.UInt8),
        ([7.0, 1.0], pl.Float64),
        ([7, 1], pl.Int32),
        ([Decimal(7), Decimal(1)], pl.Decimal(5, 0)),
    ],
)
def test_whole_numbers_become_int64(values, dtype):
    out = ids(values, dtype=dtype)
    assert out.dtype == pl.Int64 and out.to_list() == [7, 1]


def test_strings_keep_all_but_the_white_space_around_them():
    counts: dict[str, int] = {}
    out = canonical_ids(pl.Series("item_id", ["007", " 7\u00a0", "7", "a b"]), "items", counts)
    assert out.to_list() == ["007", "7", "7", "a b"]
    assert counts == {"ids_stripped_of_white_space": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.5], "item_id 2.5 in row 1 is not a whole number"),
        ([1.0, float("inf")], "item_id inf in row 1"),
        ([1.0, float("nan")], "'item_id' has 1 missing value, the first in row 1"),
        (["a", ""], "'item_id' has 1 missing value, the first in row 1"),
        ([1, None], "'item_id' has 1 missing value, the first in row 1"),
        ([True, False], "type Boolean; identifiers are integers or strings"),
        ([1, 2**63], "item_id 9223372036854775808 in row 1 does not fit in int64"),
    ],
)
def test_unusable_identifiers(values, message):
    with pytest.raises(DataError, match=message):
        ids(values, dtype=pl.UInt64 if 2**63 in values else None)


def test_case_d3_single_precision_times_are_refused_not_rounded():
    with pytest.raises(DataError, match="in row 1 is a Float32 above 16,777,216"):
        times([1.0, 978300060.0], dtype=pl.Float32)
    assert times([978300060.0, 978300055.0])[0] == [978300060, 978300055]


def test_case_d3_integers_are_exact():
    exact = [2**62 + 1, 2**62]
    assert times(exact) == (exact, None)


@pytest.mark.parametrize(
    ("values", "expected", "unit"),
    [
        ([datetime(1970, 1, 1, 0, 0, 1)], [1_000_000], "us"),
        ([date(1970, 1, 2)], [86_400_000_000], "us"),
        (["12", " 13 "], [12, 13], None),
        (["978300060.0"], [978300060], None),
        (["1970-01-01 00:00:01", "1970-01-01T00:00:02Z"], [1_000_000, 2_000_000], "us"),
    ],
)
def test_times_of_every_kind(values, expected, unit):
    assert times(values) == (expected, unit)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "yesterday", "soon"], "timestamp 'yesterday' in row 1 is not a time"),
        (["yesterday", "soon"], "timestamp 'yesterday' in row 0 is not a time"),
        (["2024-01-01", "x"], "timestamp 'x' in row 1 is not a time"),
        ([1.0, 1.5], "timestamp 1.5 in row 1 is not a whole number; .* time_unit='ms'"),
        (["1.5"], "timestamp 1.5 in row 0 is not a whole number"),
        ([True], "type Boolean; times are integers or datetimes"),
    ],
)
def test_unusable_times(values, message):
    with pytest.raises(DataError, match=message):
        times(values)


def test_a_unit_that_contradicts_the_type():
    with pytest.raises(ConfigError, match="time_unit=s contradicts"):
        times([datetime(2024, 1, 1)], unit="s")


def test_ratings():
    assert canonical_ratings(pl.Series("rating", ["4.5", None, "3"])).to_list() == [4.5, None, 3.0]
    with pytest.raises(DataError, match="rating 'good' in row 1 is not a number"):
        canonical_ratings(pl.Series("rating", ["4.5", "good"]))


@pytest.mark.parametrize("text", ["03/04/2024", "31.12.2024 10:00", "12-31-2024"])
def test_dates_whose_order_is_open_are_refused(text):
    with pytest.raises(DataError, match=r"is not a time; .* year first"):
        times([text, text])


def test_dates_keep_their_fractions():
    assert times(["2024/05/31", "2024-05-31T00:00:00.000001"])[0] == [1717113600_000000, 1717113600_000001]
    assert times(["2024-05-31 00:00:00.123456789"]) == ([1717113600_123456789], "ns")

"""Values of every type in every column: they work, or are an error of one line that names the column."""

from __future__ import annotations

import datetime as dt
import enum
import fractions
import uuid
import warnings
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from hllm.data.dataset import Dataset
from hllm.data.describe import describe
from hllm.errors import HLLMError
from hllm.recommend.additions import check_new_items


class Colour(enum.Enum):
    RED = 1


FIRST = dt.datetime(2020, 1, 1, 3)
COLUMNS: dict[str, list[Any]] = {
    "date": [dt.date(1, 1, 1), dt.date(9999, 12, 31), None, dt.date(2020, 1, 1)],
    "datetime": [FIRST, None, FIRST, FIRST + dt.timedelta(1)],
    "zone": [FIRST.replace(tzinfo=dt.timezone(dt.timedelta(hours=2)))] * 4,
    "time": [dt.time(i) for i in range(4)],
    "timedelta": [dt.timedelta(i) for i in range(4)],
    "decimal": [Decimal("1.5"), Decimal(2), None, Decimal("3.25")],
    "decimal nan": [Decimal("NaN"), Decimal(1), Decimal(2), Decimal(3)],
    "bytes": [b"a", b"b", b"\xff", None],
    "list": [[1], [2, None], None, []],
    "nested list": [[[1], [2]], [[]], None, [[3]]],
    "list of dates": [[dt.date(2020, 1, 1)], None, [], [None]],
    "list of records": [[{"a": 1}], None, [], [{"a": None}]],
    "record": [{"a": 1}, {"a": None}, None, {"a": 2}],
    "odd record": [{}, {"b": [1]}, None, {"c": dt.date(2020, 1, 1)}],
    "surrogate": ["a\ud83d", "b", "c\udc00", None],
    "list of surrogates": [["a\ud83d"], None, [], ["b"]],
    "nul": ["a\0b", "b", "c", "d"],
    "big": [10**30, 1, 2, 3],
    "huge": [2**63, 1, 2, 3],
    "mixed": [1, "a", 2.5, None],
    "flag": [True, False, None, True],
    "nan": [float("nan")] * 4,
    "none": [None] * 4,
    "inf": [float("inf"), 1.0, 2.0, 3.0],
    "nat": [pd.NaT, pd.Timestamp("2020-01-01"), pd.NaT, pd.NaT],
    "na": [pd.NA, 1, 2, 3],
    "uuid": [uuid.UUID(int=i) for i in range(4)],
    "enum": [Colour.RED] * 4,
    "fraction": [fractions.Fraction(1, 2)] * 4,
    "path": [PurePosixPath("a")] * 4,
    "complex": [1j] * 4,
    "set": [{1}, {2}, {3}, {4}],
    "tuple": [(1, 2), (3,), (), None],
    "numpy": [np.int8(1), np.float32(2), np.str_("a"), None],
    "array": [np.array([1, 2]), np.array([]), None, np.array(["a"])],
    "empty": ["", "", "", ""],
    "function": [len] * 4,
    "frame": [pd.DataFrame()] * 4,
    "period": list(pd.period_range("2020", periods=4)),
    "interval": list(pd.interval_range(0, 4)),
}
EVENTS = {
    "user_id": [1, 1, 2, 2],
    "item_id": [1, 2, 3, 4],
    "timestamp": [1, 2, 3, 4],
    "rating": [1.0, 2.0, 3.0, 4.0],
}
ITEMS = {"item_id": [1, 2, 3, 4], "title": list("abcd"), "x": [1, 2, 3, 4]}


def frame(columns: dict[str, list[Any]], name: str, values: list[Any], inferred: bool) -> pd.DataFrame:
    """A pandas table with `values` as one of its columns, as objects or as pandas sees them."""
    odd = pd.Series(list(values)) if inferred else pd.Series(list(values), dtype=object)
    return pd.DataFrame({**columns, name: odd})


def works_or_names(name: str, call: Any, *arguments: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = call(*arguments, **options)
        except HLLMError as err:
            assert name in str(err) and "\n" not in str(err) and len(str(err)) < 1000
            return
    if isinstance(result, Dataset):
        assert describe(result)["n_interactions"] == 4


@pytest.mark.parametrize("inferred", [False, True], ids=["objects", "inferred"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_case_e3_every_type_in_every_column(kind: str, inferred: bool) -> None:
    values = COLUMNS[kind]
    if inferred and "surrogate" in kind:
        pytest.skip("pandas itself cannot hold it")
    events, items = pl.DataFrame(EVENTS), pl.DataFrame(ITEMS)
    for name in EVENTS:
        works_or_names(name, Dataset.from_tables, frame(EVENTS, name, values, inferred))
    for name in ITEMS:
        table = frame(ITEMS, name, values, inferred)
        works_or_names(name, Dataset.from_tables, events, table)
        works_or_names(name, Dataset.from_tables, events, table, text_fields=["title", "x"])
    data = Dataset.from_tables(events, items)
    for name in ("title", "x"):
        new = frame({**ITEMS, "item_id": [5, 6, 7, 8]}, name, values, inferred)
        works_or_names("column", check_new_items, data, new)
    works_or_names(
        "x", Dataset.from_tables, events, None, frame({"user_id": [1, 2, 3, 4]}, "x", values, inferred)
    )

"""Arguments of public calls by type: what cannot be is named with its argument."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import polars as pl
import pytest

from hllm.arguments import flag, one_of, path, text, whole
from hllm.errors import ConfigError


def test_what_is_meant_comes_back() -> None:
    assert whole("k", np.int64(5)) == 5 and type(whole("k", np.int8(5))) is int
    assert whole("n", 0, least=0) == 0
    assert flag("keep", np.True_) is True and flag("keep", False) is False
    assert text("prompt", "") == "" and text("prompt", "ü日本") == "ü日本"
    assert path("out", "a/b") == Path("a/b") == path("out", PurePosixPath("a/b"))
    assert one_of("split", "test", ("validation", "test")) == "test"


@pytest.mark.parametrize(
    "value",
    [
        True,
        0,
        -1,
        1.0,
        "1",
        None,
        2**31,
        10**400,
        pytest.param(10**5000, id="5000 digits"),
        np.float64(1),
        [1],
        pl.Series([1]),
    ],
)
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"k=.*must be a whole number from 1") as raised:
        whole("k", value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize("value", [1, 0, "yes", None, [True], np.int64(1), pl.Series([True])])
def test_what_is_neither_true_nor_false(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"keep_seen=.*must be True or False"):
        flag("keep_seen", value)


@pytest.mark.parametrize("value", ["a\x00b", "\ud800", b"a", 3, None, ["a"], Path("a")])
def test_what_is_no_text(value: Any) -> None:
    with pytest.raises(ConfigError, match="item_llm="):
        text("item_llm", value)


@pytest.mark.parametrize("value", ["a\x00b", "\ud800", b"a", 3, None, ["a"], object()])
def test_what_is_no_path(value: Any) -> None:
    with pytest.raises(ConfigError, match="out="):
        path("out", value)


@pytest.mark.parametrize(
    "value", [["test"], np.array(["test", "a"]), pl.DataFrame({"a": [1]}), {}, 1, "tset"]
)
def test_what_is_none_of_the_names(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"unknown split .*valid: validation, test") as raised:
        one_of("split", value, ("validation", "test"))
    assert "\n" not in str(raised.value)

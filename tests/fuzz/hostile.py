"""Malformed inputs, made from a seed: values for arguments and calls, and damage to files of any kind."""

from __future__ import annotations

import datetime
import decimal
import gzip
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

WORDS = [
    "", " ", "\x00", "a\x00b", "\ud800", "\x1b[31mred", "\u202e", "\u00fc\u65e5\u672c", "x" * 300, "x" * 100_000,
    "..", "/", "~nouser/x", "/dev/null", "/proc/self/mem/x", "-1", "0", "-0", "1.5", "1e309", "nan", "inf", "-inf",
    "9" * 5000,
    "100000000000000000000", "true", "null", "none", "[]", "[1,", "{}", "{0}", "%s", "=", "a=b=c", ",",
    ",,,", "a,b", "'", '"', "`id`", "$(id)", "*", "?", "\\", "\n", "a\nb", "\t", "@", "#", "<b>", "&amp;",
    "2020-13-45", "0x10", "1_000",
]  # fmt: skip

VALUES: list[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: -1, lambda: 0, lambda: 1.5, lambda: 10**400, lambda: -(2**63) - 1,
    lambda: float("nan"), lambda: float("inf"), lambda: 1e308, lambda: 1j, lambda: "", lambda: "\x00",
    lambda: "\ud800",
    lambda: "x" * 100_000, lambda: b"12", lambda: bytearray(b"x"), lambda: [], lambda: [[]], lambda: [[[1]]],
    lambda: (),
    lambda: {}, lambda: {"a": 1}, lambda: {1: 2}, lambda: set(), lambda: {1, "a"}, lambda: frozenset({b"x"}), object,
    lambda: object, lambda: len, lambda: np.int64(3), lambda: np.float32("nan"), lambda: np.array([]),
    lambda: np.array([[1, 2]]), lambda: np.array(["a", None], dtype=object), lambda: np.datetime64("NaT"),
    lambda: decimal.Decimal("NaN"), lambda: decimal.Decimal("1e999"), lambda: datetime.date(1, 1, 1),
    lambda: datetime.timedelta(0), lambda: Path(), lambda: Path("/nowhere/at/all"), lambda: range(3),
    lambda: (i for i in range(2)), lambda: pl.DataFrame(), lambda: pl.DataFrame({"a": [1]}),
    lambda: pl.Series([None, 1]), lambda: pd.DataFrame({"item_id": [pd.NA]}), lambda: pd.Series(["a"]),
    lambda: pd.NaT, lambda: [None], lambda: [float("nan")], lambda: [True], lambda: ["a", 1, None], lambda: [b"a"],
    lambda: "interacted", lambda: "all", lambda: [10**30], lambda: ["\x00"],
]  # fmt: skip


def word(rng: random.Random, places: list[Path]) -> str:
    """A hostile text, a path that is not what is meant, or a sound text with something put into it."""
    kind = rng.randrange(10)
    if kind < 6:
        return rng.choice(WORDS)
    if kind < 9:
        return str(rng.choice(places))
    text = str(rng.choice(places))
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(WORDS)[:200] + text[at:]


def value(rng: random.Random) -> Any:
    """A hostile value of any type."""
    if rng.random() < 0.25:
        return rng.choice(WORDS)
    made = rng.choice(VALUES)()
    return made if rng.random() < 0.8 else [made]


def harm(path: Path, rng: random.Random) -> None:
    """Make a file another: cut, filled with noise, of another format, empty, a folder, or gone."""
    data = path.read_bytes()
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(14)
    if kind < 10:
        path.write_bytes(
            [
                lambda: data[:at],
                lambda: b"",
                lambda: data[:at] + rng.randbytes(1 + rng.randrange(64)) + data[at:],
                lambda: rng.randbytes(500),
                lambda: data[:at] + rng.choice(WORDS).encode("utf-8", "surrogatepass") + data[at:],
                lambda: gzip.compress(data),
                lambda: data.replace(b",", b"\t").replace(b"1", b"\xff", 1),
                lambda: b"PAR1" + data + b"PAR1",
                lambda: b"\xff\xfe" + data.decode("latin-1").encode("utf-16-le"),
                lambda: b"[" * 2000 + data,
            ][kind]()
        )
    elif kind == 10:
        path.unlink()
    elif kind == 11:
        path.unlink()
        path.mkdir()
    elif kind == 12:
        path.unlink()
        path.symlink_to(path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", data)

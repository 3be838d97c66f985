"""Files made to fill memory, disk or time: refused with the limit, or read in little."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from pathlib import Path

import polars as pl
import pytest

from hllm.data.dataset import Dataset
from hllm.data.reading import textfiles
from hllm.data.reading.event_files import first_fields, read_events
from hllm.data.reading.lines import read_blocks
from hllm.data.reading.literals import parse_json, parse_record
from hllm.data.reading.textfiles import read_utf8
from hllm.data.sources.tabular import read_tabular
from hllm.errors import DataError, FetchError
from hllm.unpack import unpack

EVENTS = "user_id,item_id,timestamp\n1,1,1\n1,2,2\n1,3,3\n"


def bomb(path: Path, size: int) -> Path:
    with gzip.open(path, "wb", 9) as file:
        file.write(EVENTS.encode())
        for _ in range(size >> 20):
            file.write(b"1" * (1 << 20))
    return path


@pytest.mark.parametrize("reader", [read_utf8, lambda p: list(read_blocks(p))])
def test_case_e22_a_gzip_bomb(tmp_path, monkeypatch, reader):
    monkeypatch.setattr(textfiles, "GROWTH_FROM", 1 << 22)
    path = bomb(tmp_path / "a.csv.gz", 32 << 20)
    assert path.stat().st_size < 40_000
    with pytest.raises(
        DataError, match=r"a\.csv\.gz holds more than \d+ MB, over 200 times its own size, the limit"
    ):
        reader(path)


def test_ordinary_gzip_files_are_no_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "GROWTH_FROM", 0)
    text = "".join(f"{i},{i * 7 % 977},{i}\n" for i in range(50_000)).encode()
    (tmp_path / "a.gz").write_bytes(gzip.compress(text))
    assert read_utf8(tmp_path / "a.gz") == text == b"".join(read_blocks(tmp_path / "a.gz"))


def test_case_e22_archive_bombs(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x", "w") as file,
    ):
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert (tmp_path / "a.zip").stat().st_size < 400_000
    with pytest.raises(
        FetchError, match=r"holds more than 268 MB \(200 times its own size\) or 200,000 files"
    ):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    blank = io.BytesIO()
    with zipfile.ZipFile(blank, "w") as archive:
        archive.writestr("x", "")
    assert unpack_bytes(tmp_path, blank.getvalue())


def unpack_bytes(folder: Path, data: bytes) -> bool:
    (folder / "b.zip").write_bytes(data)
    return unpack(folder / "b.zip", folder / "b").is_dir()


@pytest.mark.parametrize("left", ["[", '{"a":', "(", "-", "1+"])
def test_case_e22_deep_nesting_is_an_error_of_one_line(left):
    right = {"[": "]", '{"a":': "}", "(": ")"}.get(left, "")
    text = left * 100_000 + "1" + right * 100_000
    with pytest.raises(ValueError):
        parse_json(text)
    with pytest.raises(ValueError):
        parse_record(text.encode())
    with pytest.raises(ValueError):
        parse_json("9" * 5000)


@pytest.mark.parametrize("text", ['{"item_id": 1, "g": %s}', '[{"item_id": 1, "g": %s}]'])
def test_case_e22_deep_items_are_refused(tmp_path, text):
    (tmp_path / "i.csv").write_text(EVENTS)
    (tmp_path / "d.jsonl").write_text(text % ("[" * 100_000 + "]" * 100_000))
    with pytest.raises(DataError, match="nested too deeply") as caught:
        read_tabular(None, interactions=tmp_path / "i.csv", items=tmp_path / "d.jsonl")
    assert len(str(caught.value)) < 400


def test_case_e22_tables_of_too_many_columns(tmp_path, monkeypatch):
    wide = pl.DataFrame({"item_id": [1, 2, 3]}).with_columns(
        [pl.lit(1).alias(f"c{i}") for i in range(20_000)]
    )
    events = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": [1, 2, 3]})
    tables = (wide, wide.to_pandas(), wide.to_arrow())
    monkeypatch.setattr(pl, "from_pandas", None)  # it is told before any column is read
    for table in tables:
        with pytest.raises(DataError, match="the table has 20,001 columns, and the limit is 10,000"):
            Dataset.from_tables(events, table)
    (tmp_path / "i.csv").write_text(EVENTS)
    wide.write_parquet(tmp_path / "w.parquet")
    with pytest.raises(DataError, match=r"w\.parquet has 20,001 columns"):
        read_tabular(None, interactions=tmp_path / "i.csv", items=tmp_path / "w.parquet")


def test_case_e22_event_files_with_long_and_many_fields(tmp_path):
    path, text = tmp_path / "a.csv", "x, y" * 50_000
    path.write_text(f'user_id,item_id,timestamp,note\n1,1,1,"{text}"\n')
    assert read_events(path).height == 1 and first_fields(path)[0] == "user_id"
    path.write_text("user_id,item_id,timestamp," + ",".join("abc" * 20_000) + "\n")
    with pytest.raises(DataError, match="and the limit is 10,000"):
        read_events(path)
    assert csv.field_size_limit() == 131_072  # the process's own is left alone

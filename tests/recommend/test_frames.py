"""Recommendations as tables, in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError, ConfigError
from hllm.evaluate.files import read_table_file
from hllm.evaluate.ranking import TopK
from hllm.recommend.frames import check_output, formulas, to_frame, write_frame
from hllm.testing import world

TOP = TopK(
    np.array([0, 0, 1]), np.array([3, 1, 2]), np.array([0.5, 0.25, 1.0], np.float32), np.array([1, 2, 1])
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return world(n_users=6, n_items=12, string_ids=True)


def test_columns_types_and_the_users_own_ids(data: Dataset) -> None:
    frame = to_frame(TOP, ["u003", "u000"], data)
    assert frame.schema == pl.Schema(
        {"user_id": pl.String, "item_id": pl.String, "score": pl.Float32, "rank": pl.Int64}
    )
    assert frame.rows() == [("u003", "002", 0.5, 1), ("u003", "000", 0.25, 2), ("u000", "001", 1.0, 1)]
    assert to_frame(TOP, [0, 1], data)["user_id"].dtype == pl.Int64


def test_nothing_to_recommend_keeps_the_types(data: Dataset) -> None:
    none = np.zeros(0, np.int64)
    empty = to_frame(TopK(none, none, np.zeros(0, np.float32), none), [], data)
    assert empty.schema == to_frame(TOP, ["u003", "u000"], data).schema
    assert len(empty) == 0


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_what_is_written_reads_back(data: Dataset, tmp_path: Path, suffix: str) -> None:
    frame = to_frame(TOP, ["u003", "u000"], data)
    path = tmp_path / "new" / f"recs{suffix}"
    write_frame(path, frame)
    back = read_table_file(path)
    assert back.columns == frame.columns
    assert back["item_id"].to_list() == ["002", "000", "001"]  # leading zeros kept
    assert back["score"].cast(pl.Float64).to_list() == [0.5, 0.25, 1.0]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["recs.xlsx", "recs", "recs.parquet.bak"])
def test_unknown_suffixes(data: Dataset, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"valid: \.parquet, \.csv, \.tsv, \.json, \.jsonl"):
        check_output(tmp_path / name)
    with pytest.raises(ConfigError):
        write_frame(tmp_path / name, to_frame(TOP, ["a", "b"], data))
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "recs.csv").mkdir()
    with pytest.raises(ArtifactError, match="cannot write"):
        write_frame(tmp_path / "recs.csv", to_frame(TOP, ["a", "b"], data))


def test_case_e23_formulas_are_counted_and_defused(tmp_path: Path) -> None:
    ids = ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "plain", "a=b"]
    frame = pl.DataFrame({"user_id": [-1] * 6, "item_id": ids})
    assert formulas(frame) == 4
    assert formulas(frame.select("user_id")) == 0
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet"):
        write_frame(tmp_path / name, frame, spreadsheet_safe=True)
    safe = ["'" + i for i in ids[:4]] + ids[4:]
    assert pl.read_csv(tmp_path / "a.csv")["item_id"].to_list() == safe
    assert pl.read_csv(tmp_path / "a.tsv", separator="\t")["user_id"].to_list() == [-1] * 6
    assert pl.read_ndjson(tmp_path / "a.jsonl")["item_id"].to_list() == ids
    assert pl.read_parquet(tmp_path / "a.parquet")["item_id"].to_list() == ids
    write_frame(tmp_path / "a.csv", frame)
    assert pl.read_csv(tmp_path / "a.csv")["item_id"].to_list() == ids

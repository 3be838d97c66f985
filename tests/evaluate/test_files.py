"""Recommendations and truth from files."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from hllm.errors import DataError
from hllm.evaluate.files import evaluate_files, evaluate_frames


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_ranks_scores_and_file_order_agree(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.csv", "user_id,item_id\nu,007\nv,b\n")
    versions = {
        "rank.csv": "user_id,item_id,rank\nu,7,1\nv,b,1\nu,007,2\n",
        "score.tsv": "user_id\titem_id\tscore\nu\t007\t0.5\nv\tb\t9\nu\t7\t1e3\n",
        "plain.csv": "user_id,item_id\nu,7\nv,b\nu,007\n",
        "lines.jsonl": "".join(
            f'{{"user_id": "{user}", "item_id": "{item}"}}\n' for user, item in ("u7", "vb", ("u", "007"))
        ),
    }
    for name, text in versions.items():
        metrics = evaluate_files(write(tmp_path / name, text), truth, ks=[1, 2], bootstrap=0)
        assert metrics.values["hr@1"] == 0.5, name  # "7" is not "007"
        assert metrics.values["mrr@2"] == 0.75, name


def test_ranks_are_whole_numbers_also_where_they_are_stored_as_floats(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.csv", "user_id,item_id\na,x\n")
    for first, second, expected in (("1.0", "2.0", 1.0), ("2.0", "1.0", 0.0)):
        recs = write(tmp_path / "recs.csv", f"user_id,item_id,rank\na,x,{first}\na,y,{second}\n")
        assert evaluate_files(recs, truth, ks=[1], bootstrap=0)["hr@1"] == expected
    recs = write(tmp_path / "recs.csv", "user_id,item_id,rank\na,x,1.7\na,y,2.2\n")
    with pytest.raises(DataError, match="column 'rank' has values that are no whole numbers"):
        evaluate_files(recs, truth, ks=[1])


def test_integers_in_parquet_match_text(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1, 1], "item_id": [5, 6], "rank": [1, 2]}).write_parquet(
        tmp_path / "recs.parquet"
    )
    truth = write(tmp_path / "truth.csv", "user_id,item_id\n1,6\n2,5\n")
    metrics = evaluate_files(tmp_path / "recs.parquet", truth, ks=[2], bootstrap=10)
    assert metrics["recall@2"] == 0.5
    assert (metrics.n_users, metrics.n_without_recs) == (2, 1)


def test_rows_without_an_item_are_users_without_truth() -> None:
    recs = pl.DataFrame({"user_id": ["u", "v", "w"], "item_id": ["a", "a", "a"]})
    truth = pl.DataFrame({"user_id": ["u", "v"], "item_id": ["a", None]})
    metrics = evaluate_frames(recs, truth, ks=[1])
    assert (metrics["hr@1"], metrics.n_users, metrics.n_without_truth) == (1.0, 1, 2)


@pytest.mark.parametrize(
    ("recs", "message"),
    [
        (
            "user,item_id\nu,a\n",
            r"recs\.csv has no column 'user_id' \(did you mean 'user'\?\); found: user, item_id",
        ),
        ("user_id,item_id,rank\nu,a,first\n", "column 'rank' has values that are no whole numbers"),
        ("user_id,item_id,score\nu,a,nan\n", "column 'score' has values that are no numbers"),
        ("user_id,item_id,rank\nu,a,1\nu,b,1\n", "two items at one rank"),
        ("user_id,item_id\nu,a\nu,a\n", "an item twice"),
        ("user_id,item_id\nu,a\n,b\n", "missing value"),
    ],
)
def test_unusable_recommendations(tmp_path: Path, recs: str, message: str) -> None:
    truth = write(tmp_path / "truth.csv", "user_id,item_id\nu,a\n")
    with pytest.raises(DataError, match=message):
        evaluate_files(write(tmp_path / "recs.csv", recs), truth)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.csv", "user_id,item_id\nu,a\n")
    for name in ("none.csv", "none.parquet", "none.jsonl"):
        with pytest.raises(DataError, match=name):
            evaluate_files(tmp_path / name, truth)
    for name in ("bad.parquet", "bad.jsonl"):
        with pytest.raises(DataError, match=name):
            evaluate_files(write(tmp_path / name, "{{{"), truth)

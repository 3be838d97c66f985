"""Formulas, means, the result line, and what is saved."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hllm.artifacts import write_tensors
from hllm.errors import ArtifactError, ConfigError
from hllm.evaluate.metrics import (
    EvalProtocol,
    Metrics,
    as_document,
    check_ks,
    metric_names,
    parse_metric,
    rank_values,
    summarise,
)
from hllm.evaluate.tables import notes, text
from hllm.testing import world


def make_metrics(
    ranks: list[int], name: str = "model", ks=(1, 10), bootstrap: int = 200, **protocol
) -> Metrics:
    users = np.arange(len(ranks))
    values, intervals = summarise(np.array(ranks), users, metric_names(ks), bootstrap)
    settings = {
        "dataset": "tiny",
        "fingerprint": "0123456789abcdef",
        "split": "test",
        "candidates": "interacted",
        "n_items": 50,
        "seen": "filtered",
        "n_users": len(ranks),
        "n_targets": len(ranks),
        "tied_share": 0.0,
        "repeated_share": 0.0,
        "seeds": (0,),
        "checkpoint": "best validation ndcg@10",
    }
    return Metrics(
        name,
        values,
        intervals,
        users,
        users + 1,
        np.array(ranks),
        EvalProtocol(**settings | protocol),
        tuple(ks),
    )


def test_values_by_hand() -> None:
    ranks = np.array([1, 2, 3, 10, 11, 0])
    assert rank_values(ranks, "hr@10").tolist() == [1, 1, 1, 1, 0, 0]
    assert rank_values(ranks, "recall@3").tolist() == [1, 1, 1, 0, 0, 0]
    assert rank_values(ranks, "mrr@10") == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10, 0, 0])
    assert rank_values(ranks, "ndcg@10") == pytest.approx(
        [1, 1 / math.log2(3), 1 / 2, 1 / math.log2(11), 0, 0]
    )


def test_case_d7_in_numbers() -> None:
    """Case D7: rank 100 of 100 gives 0 everywhere; a rank beyond k never counts."""
    assert all(
        value == 0 for value in summarise(np.array([100]), np.array([0]), metric_names([10]))[0].values()
    )


@given(
    ranks=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    k=st.integers(1, 100),
)
def test_properties(ranks: list[int], k: int) -> None:
    array = np.array(ranks)
    values = summarise(array, np.arange(len(array)), metric_names([k, k + 1]))[0]
    assert values[f"mrr@{k}"] <= values[f"ndcg@{k}"] + 1e-12 <= values[f"hr@{k}"] + 2e-12 <= 1 + 3e-12
    assert values[f"recall@{k}"] == values[f"hr@{k}"]
    for kind in ("hr", "ndcg", "mrr"):
        assert values[f"{kind}@{k}"] <= values[f"{kind}@{k + 1}"] + 1e-12  # rises with k
        assert values[f"{kind}@{k}"] == pytest.approx(rank_values(array, f"{kind}@{k}").mean())


def test_users_with_several_targets_count_once() -> None:
    values, intervals = summarise(np.array([1, 0, 0, 1]), np.array([4, 4, 4, 2]), ["hr@1"], bootstrap=500)
    assert values["hr@1"] == pytest.approx((1 / 3 + 1) / 2)
    low, high = intervals["hr@1"]
    assert (low, high) == pytest.approx((1 / 3, 1))  # two users: a resample may hold one of them twice


def test_any_metric_of_kept_ranks() -> None:
    metrics = make_metrics([1, 4, 0, 30])
    assert metrics["hr@1"] == 0.25
    assert metrics["hr@5"] == 0.5  # not among the ks
    assert metrics["hr@1000"] == 0.75
    assert metrics.per_user("hr@5").tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("name", ["ndgc@10", "ndcg", "ndcg@0", "ndcg@-1", "ndcg@1.5", "NDCG@10", ""])
def test_unknown_metrics(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown metric .*ndcg@10"):
        make_metrics([1])[name]


def test_cut_offs() -> None:
    assert check_ks([50, 10, 10]) == (10, 50)
    assert parse_metric("ndcg@10") == ("ndcg", 10)
    for bad in ([0], [-1], [1.5], [True], []):
        with pytest.raises(ConfigError):
            check_ks(bad)


def test_result_line_says_all_that_the_protocol_asks() -> None:
    line = make_metrics([1, 2, 0, 0], "hllm-lite", tied_share=0.25, repeated_share=0.5).result_line()
    assert line.startswith(
        "hllm-lite | tiny 0123456789ab | test | candidates interacted | seen filtered | query time unknown | "
        "4 users | 50 items | seed 0 | best validation ndcg@10 | ndcg@1 0.2500 ["
    )
    assert line.endswith("| tied 25.00% | repeated targets 50.00%")
    assert "\n" not in line
    several = make_metrics([1], n_targets=7, seeds=(0, 1), checkpoint="").result_line()
    assert "1 users, 7 targets" in several
    assert "| seeds 0, 1 | no checkpoint |" in several


def test_table_names_models_and_advises() -> None:
    results = [make_metrics([1, 2], repeated_share=0.02), make_metrics([0, 9], "popularity", tied_share=0.5)]
    shown = text(results)
    assert [line.split()[0] for line in shown.splitlines()[2:4]] == ["model", "popularity"]
    assert results[0].result_line() in shown.splitlines()
    assert "2.0% of the held-out items were met before" in shown
    assert "--keep-seen" in shown
    assert "popularity 50.00%" in shown
    assert str(results[0]).startswith("model")
    assert "--keep-seen" not in str(make_metrics([1], repeated_share=0.01))  # not above 1%
    assert "--keep-seen" not in str(make_metrics([1], repeated_share=0.5, seen="kept"))
    assert notes(results)[0] == results[0].result_line()


def test_rich_table_fits_a_terminal() -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(make_metrics([1, 2, 40, 0], ks=(10, 50, 200)))
    shown = console.export_text()
    assert "hr@200" in shown
    assert "0.4077" in shown  # ndcg@10 = (1 + 0.6309) / 4
    assert "…" not in shown


def test_saved_and_loaded(tmp_path) -> None:
    metrics = make_metrics([1, 0, 7], repeated_share=0.1)
    metrics.values["coverage@10"] = 0.5
    metrics.save(tmp_path / "ranks.safetensors")
    again = Metrics.load(tmp_path / "ranks.safetensors")
    assert again.to_dict() == metrics.to_dict()
    assert again.protocol == metrics.protocol
    for name in ("users", "targets", "ranks"):
        assert np.array_equal(getattr(again, name), getattr(metrics, name))
    assert (again.name, again.ks) == (metrics.name, metrics.ks)
    write_tensors(tmp_path / "other.safetensors", {})
    with pytest.raises(ArtifactError, match="holds no ranks"):
        Metrics.load(tmp_path / "other.safetensors")


def test_document_layout() -> None:
    document = as_document({"test": make_metrics([1])}, {"test": {"popularity": make_metrics([2])}})
    document = json.loads(json.dumps(document, allow_nan=False))
    assert document["test"]["ndcg@10"] == 1.0
    assert document["test"]["protocol"]["split"] == "test"
    assert document["test"]["n_users"] == 1
    assert document["baselines"]["test"]["popularity"]["hr@1"] == 0.0


def test_a_frame_of_the_metrics() -> None:
    metrics = make_metrics([1, 3, 0, 12], name="sasrec")
    frame = metrics.to_frame()
    assert frame.columns == ["model", "split", "metric", "value", "low", "high"]
    rows = {row["metric"]: row for row in frame.to_dicts()}
    assert rows.keys() == metrics.values.keys()
    for name, row in rows.items():
        assert (row["model"], row["split"], row["value"]) == ("sasrec", "test", metrics[name])
        assert (row["low"], row["high"]) == metrics.intervals[name]
    without = make_metrics([1], bootstrap=0).to_frame()
    assert without["low"].null_count() == len(without) and without.schema == frame.schema


def test_ranks_with_the_users_ids(tmp_path: Path) -> None:
    data = world(4, 12, string_ids=True)
    metrics = replace(make_metrics([1, 3, 0, 12]), tied=np.array([True, False, False, True]))
    metrics.save(tmp_path / "ranks.safetensors")
    for found in (metrics, Metrics.load(tmp_path / "ranks.safetensors")):
        frame = found.ranks_frame(data)
        wanted = {"user_id": "u000", "item_id": data.item_ids[0], "rank": 1, "tied": True}
        assert frame.to_dicts()[0] == wanted
        assert frame["rank"].to_list() == [1, 3, None, 12]
    assert replace(metrics, tied=None).ranks_frame(data)["tied"].null_count() == 4


def test_short_in_a_notebook() -> None:
    metrics = make_metrics([1, 3, 0, 12], name="<b>", dataset="a & b")
    assert repr(metrics) == f"Metrics(<b> on a & b test: ndcg@1 {metrics['ndcg@1']:.4f}, hr@1 0.2500)"
    page = metrics._repr_html_()
    assert "<caption>&lt;b&gt; on a &amp; b, test</caption>" in page and "<th>ndcg@10</th>" in page
    assert "<b>" not in page and f"{metrics['mrr@1']:.4f} [" in page

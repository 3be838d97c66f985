"""One line where a baseline does better."""

from __future__ import annotations

from hllm.evaluate.verdict import verdict


def test_a_better_baseline_is_named_with_both_values() -> None:
    others = {"popularity": {"ndcg@10": 0.2}, "markov": {"ndcg@10": 0.3}, "random": {"ndcg@10": 0.01}}
    line = verdict("sasrec", "test", {"hr@10": 0.9, "ndcg@5": 0.9, "ndcg@10": 0.1}, others)
    assert line is not None and line.startswith(
        "verdict: sasrec is below markov, one of 2 baselines that do better: test NDCG@10 0.1000 against 0.3000; "
    )
    assert "one of" not in (verdict("a", "test", {"ndcg@10": 0.25}, others) or "")


def test_nothing_is_said_where_no_baseline_is_better_or_nothing_is_known() -> None:
    others = {"popularity": {"ndcg@10": 0.2}, "hit": {"hr@10": 1.0}}
    assert verdict("a", "test", {"ndcg@10": 0.2}, others) is None
    assert verdict("a", "test", {"hr@10": 0.0}, others) is None
    assert verdict("a", "test", {"ndcg@10": 0.0}, {}) is None
    assert verdict("a", "test", {}, {}) is None


def test_other_cut_offs() -> None:
    line = verdict("a", "test", {"ndcg@5": 0.1}, {"popularity": {"ndcg@5": 0.2}})
    assert line is not None and "NDCG@5 0.1000 against 0.2000" in line

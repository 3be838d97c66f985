"""torch-rechub's ranking metrics. Its strings, its denominators, its rounding to four places."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

from hllm.compat.rechub.states import InputError

Items = Mapping[Hashable, Sequence[int]]  # a user's items: true ones, or recommended ones in order
NAMES = ("NDCG", "MRR", "Recall", "Hit", "Precision")


def topk_metrics(
    y_true: Items,
    y_pred: Items,
    topKs: Sequence[int] | None = None,
) -> dict[str, list[str]]:
    """`{"NDCG": ["NDCG@5: 0.1234"], ...}` for users' true items and ranked recommendations.

    As in the original, NDCG, MRR, Recall and Precision are means over all users, those without a
    true item included as zeros; Hit is the number of hits over the number of true items. Lists
    shorter than k, which the original cannot read, count as misses beyond their end.

    Raises InputError where the two do not have the same users, where `topKs` is no list, or where
    nobody has a true item.
    """
    top = [5] if topKs is None else topKs
    if not isinstance(top, tuple | list):
        raise InputError(f"topKs={top!r} must be a list or tuple, for example [10, 50]")
    if missing := [u for u in y_true if u not in y_pred] or [u for u in y_pred if u not in y_true]:
        raise InputError(f"y_true and y_pred differ in users, for example {missing[0]!r}")
    if not any(y_true.values()):
        raise InputError("y_true holds no item for any user: nothing to score")
    results: dict[str, list[str]] = {name: [] for name in NAMES}
    for k in top:
        for name, value in _at(k, y_true, y_pred).items():
            results[name].append(f"{name}@{k}: {round(value, 4)}")
    return results


def ndcg_score(y_true: Items, y_pred: Items, topKs: Sequence[int] | None = None) -> list[str]:
    """`topk_metrics`' NDCG."""
    return topk_metrics(y_true, y_pred, topKs)["NDCG"]


def hit_score(y_true: Items, y_pred: Items, topKs: Sequence[int] | None = None) -> list[str]:
    """`topk_metrics`' Hit."""
    return topk_metrics(y_true, y_pred, topKs)["Hit"]


def mrr_score(y_true: Items, y_pred: Items, topKs: Sequence[int] | None = None) -> list[str]:
    """`topk_metrics`' MRR."""
    return topk_metrics(y_true, y_pred, topKs)["MRR"]


def recall_score(y_true: Items, y_pred: Items, topKs: Sequence[int] | None = None) -> list[str]:
    """`topk_metrics`' Recall."""
    return topk_metrics(y_true, y_pred, topKs)["Recall"]


def precision_score(y_true: Items, y_pred: Items, topKs: Sequence[int] | None = None) -> list[str]:
    """`topk_metrics`' Precision."""
    return topk_metrics(y_true, y_pred, topKs)["Precision"]


def _at(k: int, y_true: Items, y_pred: Items) -> dict[str, float]:
    total = dict.fromkeys(NAMES, 0.0)
    n_truth = 0
    for user, truth in y_true.items():
        if not len(truth):
            continue
        ranks = [rank for rank, item in enumerate(y_pred[user][:k], start=1) if item in truth]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(truth)) + 1))
        n_truth += len(truth)
        total["Hit"] += len(ranks)
        total["MRR"] += 1 / ranks[0] if ranks else 0.0
        total["Recall"] += len(ranks) / len(truth)
        total["Precision"] += len(ranks) / k
        total["NDCG"] += sum(1 / math.log2(rank + 1) for rank in ranks) / ideal
    return {name: value / (n_truth if name == "Hit" else len(y_true)) for name, value in total.items()}

"""Whether a model is worth anything: one plain line where a baseline does better."""

from __future__ import annotations

from collections.abc import Mapping

PREFERRED = "ndcg@10"


def verdict(
    name: str, split: str, own: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]
) -> str | None:
    """A sentence where a baseline's NDCG is above the model's; None where none is, or nothing can be compared.

    `own` and the `baselines` map metrics to values. The best baseline is named, at NDCG@10 or the first NDCG there is.
    """
    metric = next((m for m in (PREFERRED, *own) if m.startswith("ndcg@") and m in own), None)
    if metric is None:
        return None
    value = own[metric]
    better = {who: values[metric] for who, values in baselines.items() if values.get(metric, 0.0) > value}
    if not better:
        return None
    best = max(better, key=lambda who: better[who])
    others = f", one of {len(better)} baselines that do better" if len(better) > 1 else ""
    return (
        f"verdict: {name} is below {best}{others}: {split} {metric.upper()} {value:.4f} against {better[best]:.4f}; "
        "docs/low-metrics.md says what to look at"
    )

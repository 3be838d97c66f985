"""Reading a run folder into `ReportData`. Files that a run does not have are skipped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hllm.artifacts import read_json, read_jsonl
from hllm.config import by_short_name
from hllm.errors import ArtifactError
from hllm.evaluate.verdict import verdict
from hllm.progress import duration
from hllm.report.data import Breakdown, ExampleUser, ModelResult, ReportData, Series, ShownItem, Slice

EXAMPLES = "examples.json"
CHARTED_METRIC = "ndcg@10"
BREAKDOWNS = {
    "history_length": "history length (events)",
    "item_popularity": "popularity of the held-out item (training events)",
}


def collect(run: Path | str) -> ReportData:
    """Read what is known about a run. ArtifactError where the folder is not a run's."""
    run = Path(run)
    if not (run / "config.json").is_file():
        raise ArtifactError(
            f"{run} is not a run folder (no config.json); make one with `hllm train DATASET --out {run}`"
        )
    record = read_json(run / "config.json")
    if not isinstance(record, dict) or record.get("format") != "hllm-run":
        raise ArtifactError(f"{run / 'config.json'} is not a run's: its format is not 'hllm-run'")
    metrics = read_json(run / "metrics.json") if (run / "metrics.json").is_file() else {}
    split = "test" if "test" in metrics else "validation"
    config, dataset = record.get("config", {}), record.get("dataset", {})
    name = config.get("preset", "run")
    own = metrics.get(split, {})
    history = read_jsonl(run / "history.jsonl")
    results = _results(name, own, metrics.get("baselines", {}).get(split, {}))
    return ReportData(
        title=f"{name} on {dataset.get('name', 'a dataset')}",
        subtitle=_subtitle(record),
        split=split,
        highlights=_highlights(results, own, dataset),
        curves=_curves(history, config, record.get("best", {})),
        results=results,
        result_line=own.get("result_line", ""),
        verdict=verdict(name, split, results[0].metrics, {r.name: r.metrics for r in results[1:]}) or ""
        if results and results[0].is_run
        else "",
        breakdowns=_breakdowns(own.get("slices", {})),
        users=_examples(run / EXAMPLES),
        facts={
            "Dataset": _flat(dataset),
            "Item embeddings": _flat(record.get("embeddings") or {}),
            "Item vectors": _flat(_health(history, record.get("best", {}))),
            "Hardware": _flat(record.get("hardware", {})),
            "Versions": _flat(record.get("versions", {})),
            "Configuration": _flat(config),
        },
        command=record.get("command", ""),
    )


def _subtitle(record: Mapping[str, Any]) -> str:
    parts = [str(record[key]) for key in ("created",) if record.get(key)]
    if seconds := record.get("seconds"):
        parts.append(f"trained in {duration(seconds)}")
    return ", ".join(parts)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics (`name@k`) among a split's entries; recall@k is hr@k with one held-out event."""
    numbers = {k: float(v) for k, v in values.items() if "@" in k and isinstance(v, int | float)}
    return {
        k: v for k, v in numbers.items() if not (k.startswith("recall") and numbers.get(f"hr{k[6:]}") == v)
    }


def _results(
    name: str, own: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]
) -> list[ModelResult]:
    def result(label: str, values: Mapping[str, Any], is_run: bool) -> ModelResult:
        intervals = {k: (float(low), float(high)) for k, (low, high) in values.get("intervals", {}).items()}
        return ModelResult(label, _numbers(values), intervals, is_run)

    rows = [result(name, own, True)] if _numbers(own) else []
    others = [result(label, values, False) for label, values in baselines.items() if _numbers(values)]
    return rows + sorted(others, key=lambda r: -r.metrics.get(CHARTED_METRIC, 0.0))


def _highlights(
    results: list[ModelResult], own: Mapping[str, Any], dataset: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    tiles = _result_tiles(results[0], results[1:]) if results and results[0].is_run else []
    users = own.get("n_users")
    sizes = [
        ("Users", dataset.get("n_users"), f"{users:,} evaluated" if users else ""),
        ("Items", dataset.get("n_candidates"), "candidates"),
        ("Interactions", dataset.get("n_interactions"), ""),
    ]
    return tiles + [(label, f"{value:,}", remark) for label, value, remark in sizes if isinstance(value, int)]


def _result_tiles(run: ModelResult, others: list[ModelResult]) -> list[tuple[str, str, str]]:
    tiles = []
    for metric in ("ndcg@10", "hr@10"):
        if metric in run.metrics:
            interval = run.intervals.get(metric)
            remark = f"{interval[0]:.3f}–{interval[1]:.3f}, 95%" if interval else ""
            tiles.append((metric.upper(), f"{run.metrics[metric]:.4f}", remark))
    best = max((r.metrics.get(CHARTED_METRIC, 0.0), r.name) for r in others) if others else (0.0, "")
    if best[0] and CHARTED_METRIC in run.metrics:
        ratio = run.metrics[CHARTED_METRIC] / best[0]
        tiles.append(("Best baseline", f"{ratio:.2f}×", f"of {best[1]}'s NDCG@10"))
    return tiles


def _curves(
    history: list[dict[str, Any]], config: Mapping[str, Any], best: Mapping[str, Any]
) -> list[Series]:
    metric = by_short_name(config).get("valid_metric", CHARTED_METRIC)
    wanted = [("loss", "Training loss", None), (metric, f"Validation {metric.upper()}", best.get("epoch"))]
    curves = []
    for key, name, marked in wanted:
        rows = [r for r in history if isinstance(r.get(key), int | float) and "epoch" in r]
        curves.append(Series(name, [r["epoch"] for r in rows], [float(r[key]) for r in rows], marked))
    return curves


HEALTH = {
    "item_cosine": "mean cosine between items",
    "item_effective_rank": "effective rank",
    "masked_negatives": "share of negatives left out by drop_similar",
    "item_llm_plan": "gradients of the item LLM",
}


def _health(history: list[dict[str, Any]], best: Mapping[str, Any]) -> dict[str, Any]:
    """How far the item vectors of the best epoch are from collapsing, as training saw them."""
    row = next((r for r in history if r.get("epoch") == best.get("epoch")), {})
    return {label: row[key] for key, label in HEALTH.items() if key in row}


def _breakdowns(slices: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[Breakdown]:
    shown = []
    for key, rows in slices.items():
        groups = [
            Slice(str(r["label"]), int(r["users"]), float(r[CHARTED_METRIC]), _interval(r))
            for r in rows
            if r.get("users") and r.get(CHARTED_METRIC) is not None
        ]
        shown.append(Breakdown(BREAKDOWNS.get(key, key.replace("_", " ")), CHARTED_METRIC, groups))
    return shown


def _interval(row: Mapping[str, Any]) -> tuple[float, float] | None:
    pair = row.get("intervals", {}).get(CHARTED_METRIC)
    return (float(pair[0]), float(pair[1])) if pair else None


def _examples(path: Path) -> list[ExampleUser]:
    if not path.is_file():
        return []
    return [
        ExampleUser(
            name=f"User {row['user_id']}",
            history=[_item(item) for item in row["history"]],
            recommended=[_item(item, row.get("target")) for item in row["recommended"]],
            target=_item(row["target"]) if row.get("target") else None,
        )
        for row in read_json(path)
    ]


def _item(row: Mapping[str, Any], target: Mapping[str, Any] | None = None) -> ShownItem:
    is_target = target is not None and target["item_id"] == row["item_id"]
    return ShownItem(str(row.get("title") or row["item_id"]), row.get("score"), is_target)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner: text`, without the unset ones."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            for i, entry in enumerate(value):
                flat |= _flat(entry, f"{name}.{i}.")
        elif value is not None and value != []:
            flat[name] = _shown(value)
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)

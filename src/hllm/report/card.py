"""The model card: `README.md` of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hllm.artifacts import read_json, write_text
from hllm.config import by_short_name
from hllm.progress import duration


def write_card(run: Path) -> Path:
    """Write RUN/README.md from config.json and metrics.json: what it is, how good, how to use it."""
    record, metrics = read_json(run / "config.json"), read_json(run / "metrics.json")
    config, data = by_short_name(record["config"]), record["dataset"]
    made = "trained with" if record["best"] else "in"
    lines = [
        f"# {config['preset']} on {data['name']}",
        "",
        f"A next-item recommender {made} hllm on {data['n_users']:,} users, {data['n_candidates']:,} items "
        f"and {data['n_interactions']:,} interactions (dataset {data['fingerprint'][:12]}).",
        "",
        _items_line(record),
        "",
        _weights_line(record, config["valid_metric"]),
        "",
        "## Metrics",
        "",
    ]
    for split in ("test", "validation"):
        if split in metrics:
            lines += [metrics[split]["result_line"], ""]
            for baseline in metrics.get("baselines", {}).get(split, {}).values():
                lines += [baseline["result_line"], ""]
    lines += [
        "Full ranking over all candidates, ties against the model, 95% bootstrap intervals over users.",
        "",
        "## Use",
        "",
        "```python",
        "import hllm",
        f'rec = hllm.Recommender.from_pretrained("{run.as_posix()}")',
        "rec.recommend(k=10)",
        "```",
        "",
        f"Made by `{record['command']}` at {record['created']}.",
        "",
    ]
    path = run / "README.md"
    write_text(path, "\n".join(lines))
    return path


def _weights_line(record: dict[str, Any], metric: str) -> str:
    if not record["best"]:
        step = record["lineage"][0]
        return f"Its weights are those of `{step['imported']}` ({step['format']}), not trained by hllm."
    epoch = record["best"]["epoch"]
    return (
        f"Trained in {duration(record['seconds'])}; the weights are those of epoch {epoch}, the best by validation "
        f"{metric}."
    )


def _items_line(record: dict[str, Any]) -> str:
    spec = record.get("embeddings")
    config = by_short_name(record["config"])
    if spec is None:
        return "Items are known by learned ID embeddings alone."
    model = str(spec["model"])
    if spec["source"] != "control":
        model += f" (from {spec['source']}, {spec['pooling']} pooling, {spec['precision']})"
    ids = ", plus learned ID embeddings" if config["id_embedding"] else ""
    if config.get("train", "frozen") != "frozen":
        return f"Item vectors: {model}, trained with the user model ({config['train']}); it lies in `item_llm`{ids}."
    how = ", through a learned adapter" if config["adapter_hidden"] else ""
    return f"Item vectors: {model}, frozen{how}{ids}."

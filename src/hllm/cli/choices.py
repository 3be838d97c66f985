"""What the options that `train`, `tune` and `evaluate` share ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hllm.config import Config
    from hllm.data.dataset import Dataset
    from hllm.items.embeddings import ItemEmbeddings


def chosen_baselines(names: str | None, data: Dataset) -> bool | list[str]:
    """Names as they were typed, checked before anything is trained or ranked."""
    if names is None or names == "none":
        return names is None
    from hllm.baselines.fit import BASELINES, check_baselines
    from hllm.errors import ConfigError

    chosen = list(dict.fromkeys(name.strip() for name in names.split(",")))
    if "none" in chosen or not all(chosen):
        raise ConfigError(
            f"--baselines {names!r}: give names with commas between, of {', '.join(BASELINES)}, or none alone"
        )
    check_baselines(chosen, data)
    return chosen


def stored_embeddings(data: Dataset, config: Config) -> ItemEmbeddings | None:
    """The embeddings to train on, which must be there already; a trained item LLM reads texts instead."""
    items = config.items
    if items.item_llm is None:
        return None
    if items.live:
        from hllm.pipeline import prepared

        return prepared(data, config)
    from hllm.items.embed import load_embeddings

    return load_embeddings(data, items.item_llm, items.pooling, items.prompt, items.text_fields, items.fusion)


def with_dataset_default(
    data: Dataset, preset: str, file: Path | None, given: dict[str, Any]
) -> dict[str, Any]:
    """`max_len` as the dataset was prepared with, where nothing else says it."""
    if "max_len" in data.meta and "max_len" not in given and file is None:
        return {**given, "max_len": data.meta["max_len"]}
    return given

"""What a finished run folder holds beside its weights: ranks, metrics, model card and report."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.artifacts import locked, write_json, write_table
from hllm.evaluate.metrics import Metrics, as_document
from hllm.report.card import write_card

if TYPE_CHECKING:
    from hllm.pipeline import Recommender


def write_results(
    recommender: Recommender,
    folder: Path,
    own: Mapping[str, Metrics],
    others: Mapping[str, Mapping[str, Metrics]] | None = None,
) -> dict[str, Any]:
    """Write what `pipeline.evaluate_run` found into the run `folder`; returns the document of `metrics.json`.

    The report and the ranks with ids need polars; without it everything else is written.
    """
    document = as_document(own, others, recommender.record.best.get("epoch"))
    with locked(folder):
        for split, metrics in own.items():
            metrics.save(folder / "ranks" / f"{split}.safetensors")
        write_json(folder / "metrics.json", document)
        write_card(folder)
        if find_spec("polars"):
            from hllm.report.examples import example_users
            from hllm.report.write import write_report

            for split, metrics in own.items():
                assert recommender.dataset is not None
                write_table(folder / "ranks" / f"{split}.parquet", metrics.ranks_frame(recommender.dataset))
            write_report(folder, example_users(recommender))
    return document

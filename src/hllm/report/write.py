"""`write_report`: the report of a run folder, into that folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hllm.artifacts import write_json, write_text
from hllm.report.collect import EXAMPLES, collect
from hllm.report.page import render_report


def write_report(run: Path | str, examples: list[dict[str, Any]] | None = None) -> Path:
    """Write `report.html` from what the run folder holds, and return its path.

    `examples` are kept as `examples.json`, so that the report can be made again from the
    folder alone. One is `{"user_id", "history": [item], "recommended": [item], "target": item
    or None}`, oldest event first and best item first; an item is `{"item_id", "title"}`, with
    `score` where it is recommended. Raises ArtifactError where `run` is not a run folder.
    """
    run = Path(run)
    data = collect(run)  # before anything is written into a folder that may not be ours
    if examples is not None:
        write_json(run / EXAMPLES, examples)
        data = collect(run)
    path = run / "report.html"
    write_text(path, render_report(data))
    return path

"""`hllm report RUN`: the HTML report of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hllm.cli import console


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, as `hllm train` writes it.")],
) -> None:
    """Write RUN/report.html: one page that opens offline."""
    from hllm.report.write import write_report

    console.result(str(write_report(run)))

"""Requests made from the OpenAPI description, right and wrong ones, against the whole service."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

schemathesis = pytest.importorskip("schemathesis")


def call_all(run: Path, folder: Path, calls: int) -> Counter[int]:
    """Make `calls` requests, spread over all operations; how many had each status."""
    from schemathesis import GenerationMode, checks

    from hllm.serve.app import create_app
    from hllm.serve.settings import ServeSettings

    app = create_app(
        ServeSettings(run=run, compare=run, device="cpu", events=folder / "e.sqlite", max_body=1 << 16)
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    wanted = [
        checks.not_a_server_error,
        *checks.CHECKS.get_by_names(
            ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
        ),
    ]
    found = [result.ok() for result in schema.get_all_operations()]
    # Nothing is wrong in form where nothing is taken, or any text as part of the path.
    wrong = [(one, GenerationMode.NEGATIVE) for one in found if one.body or one.query]
    right = [(one, GenerationMode.POSITIVE) for one in found]
    taking = len(wrong) + sum(bool(one.body or one.query or one.path_parameters) for one in found)
    statuses: Counter[int] = Counter()
    for operation, mode in right + wrong:

        @settings(
            max_examples=-(-calls // taking),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            answer = case.call()
            statuses[answer.status_code] += 1
            case.validate_response(answer, checks=wanted)

        ask()
    return statuses


def test_500_calls(run: Path, tmp_path: Path) -> None:
    statuses = call_all(run, tmp_path, 500)
    assert sum(statuses.values()) >= 500 and max(statuses) < 500, statuses
    assert {200, 404, 422} <= set(statuses)


@pytest.mark.slow
def test_20_000_calls(run: Path, tmp_path: Path) -> None:
    statuses = call_all(run, tmp_path, 20_000)
    assert sum(statuses.values()) >= 20_000 and max(statuses) < 500, statuses

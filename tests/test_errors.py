from __future__ import annotations

import inspect

import pytest

from hllm import errors


@pytest.mark.parametrize(
    ("value", "choices", "expected"),
    [
        ("hlm-lite", ["demo", "hllm-lite"], " (did you mean 'hllm-lite'?)"),
        ("zzz", ["demo", "hllm-lite"], ""),
        ("x", [], ""),
    ],
)
def test_nearest(value: str, choices: list[str], expected: str) -> None:
    assert errors.nearest(value, choices) == expected


def test_unknown_gives_value_guess_and_all_choices() -> None:
    text = errors.unknown("preset", "dmo", iter(["demo", "sasrec"]))  # an iterator is read once
    assert text == "unknown preset 'dmo' (did you mean 'demo'?); valid: demo, sasrec"


def test_one_base_class_catches_all() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert len(classes) >= 7
    assert all(issubclass(c, errors.HLLMError) for c in classes)

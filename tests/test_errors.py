from __future__ import annotations

import inspect

import pytest

from hllm import errors


@pytest.mark.parametrize(
    ("value", "choices", "expected"),
    [
        ("hlm-lite", ["demo", "hllm-lite"], " (did you mean 'hllm-lite'?)"),
        ("zzz", ["demo", "hllm-lite"], ""),
        ("EASE", ["popularity", "ease"], " (did you mean 'ease'?)"),
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


@pytest.mark.parametrize(
    "message",
    [
        f"title {'x' * 10_000_000!r} is too long",
        f"title {'x y ' * 1_000_000!r} is too long",
        f"title {'it is 5 o clock, ' * 100 + chr(39)!r} is too long",
        f"number {'9' * 5000} is too long",
        f"column {'x' * 200}, and {'y' * 200}, are too long",
    ],
    ids=range(5),
)
def test_case_e23_values_in_messages_are_cut(message: str) -> None:
    text = str(errors.DataError(message))
    assert len(text) < 250 and "..." in text
    assert all(len(word) <= 84 for word in text.split())


def test_messages_of_usual_length_and_paths_stay_whole() -> None:
    path = "/a/" + "/".join(["folder"] * 40)
    text = f"{path} isn't the run's folder of {'short'!r}; the user's files are elsewhere, they're in {path}"
    assert str(errors.DataError(text)) == text


def test_case_e23_control_characters_are_shown() -> None:
    assert errors.visible("a\x1b[31mb\x9b\u202e\r\x07\tc\n") == (
        "a\\u001b[31mb\\u009b\\u202e\\u000d\\u0007\tc\n"
    )
    assert errors.visible("Ünïcödé 本 😀 \u200d") == "Ünïcödé 本 😀 \u200d"

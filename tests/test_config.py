from __future__ import annotations

import json
from pathlib import Path

import pytest

from hllm.config import PRESETS, Config, load_config, make_config, parse_assignments
from hllm.errors import ConfigError


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_survives_json(preset: str) -> None:
    config = load_config(preset)
    assert config.preset == preset
    assert make_config(json.loads(json.dumps(config.model_dump()))) == config


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 7\nseed: 3\n")
    config = load_config("demo", file, {"seed": 5})
    assert (config.training.epochs, config.training.seed, config.users.d_model) == (
        7,
        5,
        PRESETS["demo"]["d_model"],
    )


def test_file_names_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: sasrec\n")
    assert load_config("demo", file).items.item_llm is None


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("learning_rate=1e-3", 1e-3),
        ("learning_rate=.5", 0.5),
        ("epochs=20", 20),
        ("id_embedding=true", True),
        ("patience=null", None),
        ("item_llm=", None),
        ("text_fields=[title, genres]", ["title", "genres"]),
        ("item_llm=random", "random"),
        ("item_llm=HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("prompt=a=b: c", "a=b: c"),
        ("prompt=Summarise: ", "Summarise: "),
        ("prompt='Item: '", "Item: "),
        ("item_llm=2024-01-01", "2024-01-01"),
        ("item_llm=[", "["),
        ("max_len=all", "all"),
        (" epochs =20", 20),
    ],
)
def test_assignments(pair: str, value: object) -> None:
    parsed = parse_assignments([pair])
    assert list(parsed.values()) == [value]
    assert type(next(iter(parsed.values()))) is type(value)


def test_scientific_notation_reaches_the_configuration() -> None:
    assert (
        load_config("demo", overrides=parse_assignments(["learning_rate=5e-4"])).training.learning_rate
        == 5e-4
    )


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("epoch=3", r"unknown setting 'epoch' \(did you mean 'epochs'\?\); valid: preset, "),
        ("epochs", r"--set 'epochs' is not key=value"),
    ],
)
def test_bad_assignments(pair: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_assignments([pair])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "hlm-lite"}, r"unknown preset 'hlm-lite' \(did you mean 'hllm-lite'\?\); valid: "),
        ({"preset": ["demo"]}, r"unknown preset \['demo'\]"),
        ({"lr": 0.1}, r"unknown setting 'lr'.*; valid: .*learning_rate"),
        ({"dropout": 1.5}, r"setting dropout=1.5: .*less than 1"),
        ({"dropout": float("nan")}, r"setting dropout=nan"),
        ({"pooling": "max"}, r"setting pooling='max': .*'mean' or 'last'"),
        ({"epochs": "many"}, r"setting epochs='many': .*integer"),
        ({"valid_metric": "auc"}, r"setting valid_metric='auc'"),
        ({"d_model": 100, "n_heads": 3}, r"d_model=100 is not a multiple of n_heads=3"),
        ({"max_len": 0}, r"max_len=0: must be a number of events from 1, or 'all'"),
        ({"max_len": 10**20}, r"max_len=1000.*: must be a number of events from 1, or 'all'"),
        ({"seed": -1}, r"setting seed=-1: .*greater than or equal to 0"),
        ({"seed": 10**23}, r"setting seed=1000.*: .*less than"),
        ({"item_llm": None, "id_embedding": False}, r"leaves items without any vector"),
    ],
)
def test_bad_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("hllm-lite", overrides=values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config file .*run.yaml not found"),
        (b"- a\n- b\n", r"must hold 'key: value' lines, not list"),
        (b"", r"must hold 'key: value' lines, not NoneType"),
        (b"a: [1\n", r"is not readable YAML"),
        (b"title: Mis\xe9rables\n", r"is not readable YAML"),
        (b"d_modle: 3\n", r"unknown setting 'd_modle' \(did you mean 'd_model'\?\)"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("demo", file)
    assert "\n" not in str(caught.value)


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().epochs = 3  # type: ignore[misc]

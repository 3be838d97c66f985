"""Typed, validated configuration and the presets. Unknown keys are errors.

One flat model: every setting has one name, the same in Python, in a YAML file, in
`--set key=value` and in a run's `config.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hllm.errors import ConfigError, nearest, unknown


class Config(BaseModel):
    """Everything that defines a run, apart from the dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "hllm-lite"

    # Item vectors. `item_llm` is a short name, a hub name, a folder, "tfidf", "random", or
    # None for a model without text.
    item_llm: str | None = "smollm2-135m"
    pooling: Literal["mean", "last"] = "mean"
    prompt: str | None = None  # None: the official prompt of text/template.py
    text_fields: list[str] | None = None  # None: every text column, in the table's order
    whiten: Literal["whiten", "center", "none"] = "whiten"
    whiten_rank: int = Field(256, ge=1)
    adapter_hidden: int = Field(512, ge=1)
    id_embedding: bool = True

    # User model.
    d_model: int = Field(256, ge=1)
    n_layers: int = Field(6, ge=1)
    n_heads: int = Field(4, ge=1)
    ffn_hidden: int | None = Field(None, ge=1)  # None: 8/3 of d_model, a multiple of 32
    dropout: float = Field(0.5, ge=0, lt=1)
    max_distance: int = Field(256, ge=1)  # relative positions further back share one bias
    max_len: int | Literal["all"] = 200
    temperature: float = Field(0.07, gt=0)  # start value; learned

    # Objective.
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    mask_prob: float = Field(0.1, ge=0, lt=1)  # input items replaced by a learned mask vector

    # Training.
    epochs: int = Field(40, ge=1)
    batch_tokens: int = Field(16384, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.3, ge=0)
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    min_lr_ratio: float = Field(0.01, ge=0, le=1)
    grad_clip: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)  # 0: no weight averaging
    patience: int | None = Field(None, ge=1)  # epochs without a better valid_metric; None: never stop
    valid_metric: str = Field("ndcg@10", pattern=r"^(hr|recall|ndcg|mrr)@[1-9]\d*$")
    eval_every: int = Field(1, ge=1)  # epochs between validations; the last epoch is always validated
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0


PRESETS: dict[str, dict[str, Any]] = {
    # The best frozen-embedding model we know: text and ID, packed whole histories.
    "hllm-lite": {},
    # The same engine on ids alone.
    "sasrec": {"item_llm": None, "id_embedding": True},
    # A small hllm-lite that a two-core machine trains in about two minutes.
    "demo": {
        "d_model": 128,
        "n_layers": 2,
        "n_heads": 4,
        "whiten_rank": 128,
        "adapter_hidden": 256,
        "epochs": 30,
        "batch_tokens": 8192,
    },
}


def load_config(
    preset: str = "hllm-lite", file: Path | str | None = None, overrides: dict[str, Any] | None = None
) -> Config:
    """Return the preset's configuration, changed by a YAML `file`, then by `overrides`.

    Raises ConfigError for an unknown preset or key (with the nearest valid name) and for a
    value of the wrong type or range.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values |= _read_yaml(Path(file))
    values |= overrides or {}
    preset = values.pop("preset", preset)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(unknown("preset", preset, PRESETS))
    return make_config({"preset": preset, **PRESETS[preset], **values})


def make_config(values: dict[str, Any]) -> Config:
    """Validate `values`; ConfigError names the key, the value and what is allowed."""
    for key in values:
        if key not in Config.model_fields:
            raise ConfigError(unknown("setting", key, Config.model_fields))
    try:
        config = Config(**values)
    except ValidationError as err:
        first = err.errors()[0]
        key = str(first["loc"][0])
        raise ConfigError(f"setting {key}={values.get(key)!r}: {first['msg']}") from err
    if config.d_model % config.n_heads:
        raise ConfigError(f"d_model={config.d_model} is not a multiple of n_heads={config.n_heads}")
    if isinstance(config.max_len, int) and config.max_len < 1:
        raise ConfigError(f"setting max_len={config.max_len}: must be at least 1, or 'all'")
    if config.item_llm is None and not config.id_embedding:
        raise ConfigError(
            "item_llm=None with id_embedding=False leaves items without any vector; set one of them"
        )
    return config


def parse_assignments(pairs: list[str]) -> dict[str, Any]:
    """Parse `key=value` strings of `--set`; values are YAML scalars (`1e-3`, `true`, `null`, `[a, b]`)."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair!r} is not key=value, for example --set epochs=20")
        key = key.strip()
        if key not in Config.model_fields:
            raise ConfigError(
                f"unknown setting {key!r}{nearest(key, Config.model_fields)}; valid: "
                + ", ".join(Config.model_fields)
            )
        values[key] = _scalar(text)
    return values


def _scalar(text: str) -> Any:
    """A YAML scalar or list; anything else, such as a prompt with `: ` in it, is the text as it stands."""
    if _is_number(text) and not text.strip().lstrip("+-").isdigit():
        return float(text)  # YAML 1.1 reads 1e-3 as text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    quoted = isinstance(value, str) and text.strip()[:1] in ("'", '"')
    return value if quoted or value is None or isinstance(value, bool | int | float | list) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ConfigError(f"config file {path} not found") from err
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ConfigError(f"config file {path} is not readable YAML: {str(err).splitlines()[0]}") from err
    if not isinstance(values, dict):
        raise ConfigError(f"config file {path} must hold 'key: value' lines, not {type(values).__name__}")
    return values

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
    adapter_hidden: int | None = Field(512, ge=1)  # None: no adapter, text vectors are item vectors
    id_embedding: bool = True

    # User model. "gated" is models/hllm.py's own, "rechub" torch-rechub's (models/rechub.py).
    user_model: Literal["gated", "rechub"] = "gated"
    d_model: int | None = Field(256, ge=1)  # None, and only without adapter: the text vectors' width
    n_layers: int = Field(6, ge=1)
    n_heads: int | None = Field(4, ge=1)  # None: torch-rechub's rule, 4, from width 512 on 8, from 2048 on 16
    ffn_hidden: int | None = Field(None, ge=1)  # None: 8/3 of d_model, a multiple of 32
    dropout: float = Field(0.5, ge=0, lt=1)
    max_distance: int = Field(256, ge=1)  # relative positions further back share one bias
    max_len: int | Literal["all"] = 200
    time_embedding: Literal["none", "window_end", "previous"] = "none"  # user_model="rechub" only
    num_time_buckets: int = Field(2048, ge=2)
    time_bucket_fn: Literal["sqrt", "log"] = "sqrt"
    scorer: Literal["cosine", "dot"] = "cosine"
    temperature: float = Field(0.07, gt=0)  # start value where it is learned
    learn_temperature: bool = True

    # Objective. "nce" is torch-rechub's name for cross entropy over every item.
    loss: Literal["cross_entropy", "nce", "in_batch", "sampled"] = "cross_entropy"
    loss_temperature: float = Field(1.0, gt=0)  # divides the scores once more, in the loss alone
    # in_batch: targets of other users taken as negatives, at most (None: all). sampled: items drawn (None: 512).
    n_negatives: int | None = Field(None, ge=1)
    negatives_by: Literal["counts", "uniform"] = "counts"  # sampled: drawn by training events, or evenly
    logq: bool = True  # in_batch, sampled: scores are corrected for how often an item is a negative
    mask_history: bool = False  # in_batch, sampled: the user's own items are no negatives
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    mask_prob: float = Field(0.1, ge=0, lt=1)  # input items replaced by a learned mask vector

    # Training. "random": one window per user and epoch; "pieces": ByteDance's cut, without overlap;
    # "every": whole histories in pieces, every event but a user's first a target once an epoch.
    windows: Literal["random", "pieces", "every"] = "random"
    passes: int = Field(1, ge=1)  # how often an epoch goes over the data, each time in other windows
    optimizer: Literal["adamw", "adam"] = "adamw"  # adam: weight_decay is an L2 penalty on every weight
    epochs: int = Field(40, ge=1)
    batch_tokens: int = Field(8192, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.15, ge=0)
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    min_lr_ratio: float = Field(0.01, ge=0, le=1)
    grad_clip: float | None = Field(1.0, gt=0)  # None: gradients are not clipped
    ema_decay: float = Field(0.999, ge=0, lt=1)  # 0: no weight averaging
    patience: int | None = Field(None, ge=1)  # epochs without a better valid_metric; None: never stop
    valid_metric: str = Field("ndcg@10", pattern=r"^(hr|recall|ndcg|mrr)@[1-9]\d*$")
    eval_every: int = Field(1, ge=1)  # epochs between validations; the last epoch is always validated
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = Field(0, ge=0, lt=2**32)


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
        "dropout": 0.3,
        "learning_rate": 3e-3,
        "epochs": 12,
        "batch_tokens": 4096,
    },
}

# torch-rechub's lightweight HLLM as release 0.9 has it: raw LLM vectors, nothing learned about items.
_RECHUB: dict[str, Any] = {
    "pooling": "last",
    "whiten": "none",
    "adapter_hidden": None,
    "id_embedding": False,
    "user_model": "rechub",
    "d_model": None,
    "n_layers": 2,
    "n_heads": None,
    "dropout": 0.1,
    "max_len": 200,
    "time_embedding": "window_end",
    "temperature": 0.07,
    "learn_temperature": False,
    "loss": "nce",
    "label_smoothing": 0.0,
    "mask_prob": 0.0,
    "windows": "every",
    "optimizer": "adam",
    "epochs": 5,
    # The original trains each target once in every window that holds it, and so has some ten times the
    # targets a step for as many steps; averaged weights and a rate that falls make up for fewer.
    "passes": 9,
    "batch_tokens": 576,
    "learning_rate": 1e-3,
    "weight_decay": 1e-5,
    "warmup_ratio": 0.05,
    "min_lr_ratio": 0.01,
    "grad_clip": None,
    "ema_decay": 0.99,
}
PRESETS["rechub"] = _RECHUB
# The same in the state of its document (commit c712aff): raw dot products, the temperature in the loss.
PRESETS["rechub-doc"] = {
    **_RECHUB,
    "scorer": "dot",
    "temperature": 1.0,
    "loss_temperature": 0.1,
    "passes": 1,  # its loss is at a window's last position: each target once
    "batch_tokens": 512,
    "warmup_ratio": 0.0,
    "min_lr_ratio": 1.0,
    "ema_decay": 0.0,
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
        shown = repr(values.get(key))
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise ConfigError(f"setting {key}={shown}: {first['msg']}") from err
    _check_model(config)
    if isinstance(config.max_len, int) and not 1 <= config.max_len < 2**31:
        raise ConfigError(f"setting max_len={config.max_len}: must be a number of events from 1, or 'all'")
    if config.item_llm is None and not config.id_embedding:
        raise ConfigError(
            "item_llm=None with id_embedding=False leaves items without any vector; set one of them"
        )
    return config


def heads_of(d_model: int, n_heads: int | None) -> int:
    """`n_heads`, or torch-rechub's choice for the width; ConfigError unless it divides `d_model`."""
    if n_heads is None:
        n_heads = 16 if d_model >= 2048 else 8 if d_model >= 512 else 4
    if d_model % n_heads:
        fitting = [str(n) for n in range(1, min(d_model, 64) + 1) if d_model % n == 0]
        raise ConfigError(
            f"d_model={d_model} is not a multiple of n_heads={n_heads}; choose n_heads from {', '.join(fitting)}"
        )
    return n_heads


def _check_model(config: Config) -> None:
    if config.d_model is not None:
        heads_of(config.d_model, config.n_heads)
    if (config.adapter_hidden is None) != (config.d_model is None):
        raise ConfigError(
            f"d_model={config.d_model} with adapter_hidden={config.adapter_hidden}: without an adapter the item "
            "vectors' own width is the model's, so both are null, or neither"
        )
    if config.adapter_hidden is None and (config.item_llm is None or config.id_embedding):
        raise ConfigError(
            f"adapter_hidden=null uses text vectors alone as item vectors; it needs an item_llm "
            f"(item_llm={config.item_llm}) and id_embedding=false"
        )
    if config.user_model == "rechub" and config.max_len == "all":
        raise ConfigError(
            "user_model='rechub' has one vector per position, so max_len is a number, not 'all'"
        )
    if config.user_model != "rechub" and config.time_embedding != "none":
        raise ConfigError(
            f"time_embedding={config.time_embedding!r} belongs to user_model='rechub'; "
            f"with user_model={config.user_model!r} it is 'none'"
        )
    if config.label_smoothing and config.loss in ("in_batch", "sampled"):
        raise ConfigError(
            f"label_smoothing={config.label_smoothing} spreads over every item, which loss={config.loss!r} never "
            "sees; set label_smoothing=0, or loss=cross_entropy"
        )


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
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that no calendar has
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
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as err:
        raise ConfigError(f"config file {path} is not readable YAML: {str(err).splitlines()[0]}") from err
    if not isinstance(values, dict):
        raise ConfigError(f"config file {path} must hold 'key: value' lines, not {type(values).__name__}")
    return values

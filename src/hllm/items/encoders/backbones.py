"""Language models as text encoders: any causal or encoder model that transformers loads."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hllm.errors import ArtifactError, ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PROBE = 5  # tokens of the text that finds out where a model's positions begin
_UNLIMITED = 1_000_000  # tokenizers without a limit of their own report about 1e30


@dataclass(frozen=True)
class Backbone:
    """A model, its tokenizer and what is needed to call them."""

    model: nn.Module
    tokenizer: Any
    device: torch.device
    dim: int
    pad_id: int  # filler at masked positions; an existing token, so that no table is resized
    max_length: int  # longest input, in tokens, that the model takes
    name: str = "the item LLM"  # for messages

    def hidden(self, ids: Tensor, mask: Tensor, **extra: Any) -> Any:
        """The model's output for `ids` and `mask` (n, length): `last_hidden_state` (n, length, dim)."""
        return self.model(input_ids=ids, attention_mask=mask, **extra)


def load_backbone(
    path: Path,
    precision: str,
    device: torch.device,
    trust_remote_code: bool = False,
    name: str = "",
    init: str = "pretrained",
) -> Backbone:
    """Load the model in `path` in evaluation mode, in `precision` ("fp32", "bf16", "fp16").

    init="scratch" takes the shape and tokenizer alone; weights are random.

    An encoder-decoder is used through its encoder. Raises ConfigError if the model needs its own
    code and `trust_remote_code` is false, ArtifactError if transformers cannot load it.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    name = name or str(path)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
            if init == "scratch":
                model = AutoModel.from_config(AutoConfig.from_pretrained(path), dtype=DTYPES[precision])
            else:
                model = AutoModel.from_pretrained(
                    path, dtype=DTYPES[precision], trust_remote_code=trust_remote_code
                )
        except Exception as err:  # each architecture fails in its own way
            if "trust_remote_code" in str(err):
                raise ConfigError(
                    f"item LLM {name!r} brings its own Python code, which is not run unless you say so: read "
                    f"it in {path}, then add --trust-remote-code (trust_remote_code=True)"
                ) from err
            message = " ".join(str(err).split())[:300]
            raise ArtifactError(f"transformers cannot load item LLM {name!r} from {path}: {message}") from err
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        model = model.to(device).eval().requires_grad_(False)
        pad_id = _pad_id(tokenizer, model)
        return Backbone(
            model=model,
            tokenizer=tokenizer,
            device=device,
            dim=hidden_size(model.config),
            pad_id=pad_id,
            max_length=_max_length(tokenizer, model, pad_id),
            name=name,
        )


def hidden_size(config: Any) -> int:
    """Width of the hidden states, whatever the architecture calls it."""
    for source in (config, getattr(config, "text_config", None)):
        for key in ("hidden_size", "d_model", "n_embd", "dim"):
            if isinstance(value := getattr(source, key, None), int):
                return value
    raise ArtifactError(
        f"cannot tell the hidden size of a {getattr(config, 'model_type', 'model')!r} configuration"
    )


def table_rows(model: nn.Module) -> int | None:
    """Number of token ids that the model has an embedding for; None if it keeps no such table."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # some models embed characters by hashing
        return None


def _pad_id(tokenizer: Any, model: nn.Module) -> int:
    # Masked positions are read by nobody, so any valid id will do; RoBERTa-like models derive positions
    # from the padding id, so it is kept where there is one.
    size = table_rows(model) or _UNLIMITED
    for value in (tokenizer.pad_token_id, getattr(model.config, "pad_token_id", None)):
        if isinstance(value, int) and 0 <= value < size:
            return value
    return 0


def _max_length(tokenizer: Any, model: nn.Module, pad_id: int) -> int:
    config: Any = model.config
    limits = [getattr(tokenizer, "model_max_length", None), getattr(config, "max_position_embeddings", None)]
    limits.append(position_limit(model, pad_id))
    known = [int(v) for v in limits if isinstance(v, int | float) and 0 < v < _UNLIMITED]
    return min(known, default=_UNLIMITED)


@torch.inference_mode()
def position_limit(model: nn.Module, pad_id: int) -> int | None:
    """Longest input for which the model's table of positions has rows; None if it has no such table.

    Models count from different numbers: BERT from 0, OPT from 2, RoBERTa and its relatives from the
    padding id + 1. What a short text looks up is the one sure answer: the table whose rows are
    consecutive while all tokens are the same.
    """
    token = next(i for i in range(4) if i not in (1, pad_id, getattr(model.config, "pad_token_id", None)))
    ids = torch.full((1, _PROBE), token, device=next(model.parameters()).device)
    watch = _LookUps()
    # A model that refuses this text has its say where it is given real ones.
    with contextlib.suppress(Exception), watch:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return min(watch.limits, default=None)


class _LookUps(TorchFunctionMode):
    """Notes, for every embedding that is looked up at consecutive rows, how long a text its rows allow."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.embedding:
            named = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            rows, table = named["input"].flatten(), named["weight"]
            if len(rows) >= _PROBE and bool((rows[1:_PROBE] - rows[: _PROBE - 1] == 1).all()):
                self.limits.append(len(table) - int(rows[0]))
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def quiet(bars_too: bool = True) -> Iterator[None]:
    """Silence transformers while it loads: its log, its warnings and, if `bars_too`, its bars.

    Everything is put back afterwards. Bars are written to `sys.stderr` wherever it points, so that
    is where they are caught.
    """
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.simplefilter("ignore")
            if bars_too:
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield
    finally:
        logging.set_verbosity(before)

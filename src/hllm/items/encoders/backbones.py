"""Language models as text encoders: any causal or encoder model that transformers loads."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hllm.errors import ArtifactError, ConfigError, HLLMError, unknown
from hllm.items.encoders import baichuan
from hllm.items.encoders.pooling import states_of
from hllm.items.encoders.registry import QUANTIZATIONS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}
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
    layers: str = ""  # whose states are pooled (see `states_of`)

    def hidden(self, ids: Tensor, mask: Tensor, **extra: Any) -> Any:
        """The model's output for `ids` and `mask` (n, length), of which `states` takes what is pooled."""
        if self.layers:
            extra["output_hidden_states"] = True
        return self.model(input_ids=ids, attention_mask=mask, **extra)

    def states(self, output: Any) -> Tensor:
        """The hidden states (n, length, dim) that are pooled."""
        return states_of(output, self.layers)


def load_backbone(
    path: Path,
    precision: str,
    device: torch.device,
    trust_remote_code: bool = False,
    name: str = "",
    quantize: str | None = None,
    attn: str | None = None,
    init: str = "pretrained",
) -> Backbone:
    """Load the model in `path` in evaluation mode, in `precision` ("fp32", "bf16", "fp16").

    quantize   "8bit" or "4bit": weights held by bitsandbytes, `precision` that of the computation
    attn       attention implementation by transformers' name, None for its choice
    init       "scratch" takes the shape and tokenizer alone; weights are random

    An encoder-decoder is used through its encoder, Baichuan2 as the Llama that it is. Raises ConfigError if
    the model needs its own code and `trust_remote_code` is false, or bitsandbytes is missing; ArtifactError
    if transformers cannot load it.
    """
    name = name or str(path)
    options: dict[str, Any] = {"dtype": DTYPES[precision]} | _quantised(quantize, precision, device)
    if attn is not None:
        options["attn_implementation"] = attn
    with quiet():
        try:
            tokenizer, model = _load(path, trust_remote_code, options, init)
        except HLLMError:
            raise
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
        if quantize is None:
            model = model.to(device)
        model = model.eval().requires_grad_(False)
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


def _load(path: Path, trust_remote_code: bool, options: dict[str, Any], init: str) -> tuple[Any, Any]:
    """Tokenizer and model of a folder."""
    from transformers import AutoConfig, AutoModel

    tokenizer = load_tokenizer(path, trust_remote_code)
    if baichuan.is_baichuan(path) and not trust_remote_code:
        return tokenizer, baichuan.load_model(path, init, **options)
    if init == "scratch":
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        return tokenizer, AutoModel.from_config(config, trust_remote_code=trust_remote_code, **options)
    return tokenizer, AutoModel.from_pretrained(path, trust_remote_code=trust_remote_code, **options)


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model's folder; Baichuan2's without its own code."""
    from transformers import AutoTokenizer

    if baichuan.is_baichuan(path) and not trust_remote_code:
        return baichuan.load_tokenizer(path)
    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


def _quantised(quantize: str | None, precision: str, device: torch.device) -> dict[str, Any]:
    """Options of `from_pretrained` that hold the weights in 8 or 4 bits; ConfigError without bitsandbytes."""
    if quantize is None:
        return {}
    if quantize not in QUANTIZATIONS:
        raise ConfigError(unknown("quantization", quantize, QUANTIZATIONS))
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"--quantize {quantize} needs the library bitsandbytes: pip install bitsandbytes, or leave it out"
        )
    from transformers import BitsAndBytesConfig

    settings: dict[str, Any] = {"load_in_8bit": True}
    if quantize == "4bit":  # NF4 with its constants quantised too (QLoRA; Dettmers and others, 2023)
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        settings["bnb_4bit_compute_dtype"] = DTYPES[precision]
    return {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": device}}


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

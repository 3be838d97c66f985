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

from hllm.errors import ArtifactError, ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
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

    def hidden(self, ids: Tensor, mask: Tensor, **extra: Any) -> Any:
        """The model's output for `ids` and `mask` (n, length): `last_hidden_state` (n, length, dim)."""
        return self.model(input_ids=ids, attention_mask=mask, **extra)


def load_backbone(
    path: Path, precision: str, device: torch.device, trust_remote_code: bool = False, name: str = ""
) -> Backbone:
    """Load the model in `path` in evaluation mode, in `precision` ("fp32", "bf16", "fp16").

    An encoder-decoder is used through its encoder. Raises ConfigError if the model needs its own
    code and `trust_remote_code` is false, ArtifactError if transformers cannot load it.
    """
    from transformers import AutoModel, AutoTokenizer

    name = name or str(path)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
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
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        device=device,
        dim=hidden_size(model.config),
        pad_id=_pad_id(tokenizer, model),
        max_length=_max_length(tokenizer, model.config),
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


def _pad_id(tokenizer: Any, model: nn.Module) -> int:
    # Masked positions are read by nobody, so any valid id will do; RoBERTa-like models derive positions
    # from the padding id, so it is kept where there is one.
    size = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    for value in (tokenizer.pad_token_id, getattr(model.config, "pad_token_id", None)):
        if isinstance(value, int) and 0 <= value < size:
            return value
    return 0


def _max_length(tokenizer: Any, config: Any) -> int:
    limits = [getattr(tokenizer, "model_max_length", None), getattr(config, "max_position_embeddings", None)]
    known = [int(v) for v in limits if isinstance(v, int | float) and 0 < v < _UNLIMITED]
    offset = 2 if "roberta" in str(getattr(config, "model_type", "")) else 0  # its positions start at 2
    return min(known, default=_UNLIMITED) - offset


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

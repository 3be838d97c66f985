"""A language model as user model: it reads item vectors instead of words. Read from top to bottom.

    item vectors (T, w) -> linear to the LLM's width -> decoder -> final norm -> linear to (T, w)

Any transformers decoder that takes `inputs_embeds`, pretrained or from scratch (HLLM; Chen et al., 2024).
Users of a batch lie end to end in one pack: positions begin anew with each, and none sees another. The
word embeddings are not used and not kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.errors import ArtifactError, ConfigError, unknown
from hllm.items.encoders.backbones import quiet
from hllm.items.encoders.pack import Pack, pack_rows
from hllm.items.encoders.packed_model import PackedModel
from hllm.models.config import UsersConfig
from hllm.packing import Rows
from hllm.settings import heads_of

INITS = ("pretrained", "scratch")


class LLMUserModel(nn.Module):
    """`model`: a transformers decoder without head; `width` w: of the item vectors.

    fixed_shapes  False: packs are planned on the host, so a step cannot be captured

    Raises ConfigError for a model whose tokens see later ones: it would read what it is to predict.
    """

    fixed_shapes = False

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = PackedModel(model)
        if not self.backbone.causal:
            raise ConfigError(
                f"user LLM {model.config.model_type!r} reads in both directions; "  # type: ignore[union-attr]
                "use a decoder, such as llama or qwen3"
            )
        dim = self.backbone.dim
        like = next(model.parameters())
        words = nn.Embedding(1, dim, dtype=like.dtype, device=like.device)  # transformers asks for one
        model.set_input_embeddings(words.requires_grad_(False))  # type: ignore[operator]
        self.into: nn.Module = nn.Identity() if width == dim else _linear(width, dim, like.device)
        self.out: nn.Module = nn.Identity() if width == dim else _linear(dim, width, like.device)

    def config(self) -> dict[str, Any]:
        """What `load_llm` rebuilds the model from, before weights are loaded."""
        config: dict[str, Any] = self.backbone.model.config.to_dict()  # type: ignore[union-attr,operator]
        return config

    def forward(self, x: Tensor, layout: Rows, signals: Any = None) -> Tensor:
        """Hidden states (T, w) of item vectors (T, w); `layout` says whose they are. Times are not read."""
        n = len(x)
        # A rank's part of a batch may be empty; its layers run all the same, backwards too, for others wait for them:
        # hence a row of zeros that hangs on `x`, whose gradient the first layer waits for.
        pack = pack_rows(layout) if n else Pack([1], x.device)
        embeds = self.into(x if n else F.pad(x, (0, 0, 0, 1))).to(next(self.backbone.parameters()).dtype)
        hidden = self.backbone(pack, embeds=embeds)[:n]  # (T, dim)
        return self.out(hidden.to(x.dtype))


def make_llm(users: UsersConfig, width: int, shape: dict[str, Any] | None = None) -> LLMUserModel:
    """The user LLM that a configuration asks for: a model by name or folder, or a llama of its own shape.

    shape   its configuration, of a run whose weights are loaded afterwards: nothing is looked for
    """
    if shape is not None:
        return LLMUserModel(load_llm(shape, "scratch"), width)
    if users.user_llm is not None:
        from hllm.items.encoders.hub import find_model, find_settings
        from hllm.items.encoders.names import canonical

        name = canonical(users.user_llm)
        folder = find_settings(name) if users.user_llm_init == "scratch" else find_model(name).path
        return LLMUserModel(load_llm(folder, users.user_llm_init), width)
    heads = heads_of(width, users.n_heads)
    own = {
        "model_type": "llama",
        "vocab_size": 32,  # words are not read; the few here try out whether the model can be packed
        "hidden_size": width,
        "num_hidden_layers": users.n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": users.ffn_hidden or -(-8 * width // 3 // 32) * 32,
        "max_position_embeddings": 2**16,
        "pad_token_id": None,
    }
    return LLMUserModel(load_llm(own, "scratch"), width)


def load_llm(
    source: Path | dict[str, Any], init: str = "pretrained", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A transformers model without head, in training mode.

    source   a model folder, or a configuration (its `to_dict`, with "model_type"); init="scratch" takes the
             folder's shape alone
    Raises ConfigError for an unknown init or a configuration with init="pretrained", ArtifactError for a
    folder or configuration that transformers cannot load.
    """
    from transformers import AutoConfig, AutoModel

    if init not in INITS:
        raise ConfigError(unknown("init", init, INITS))
    if init == "pretrained" and isinstance(source, dict):
        raise ConfigError(
            "init='pretrained' needs a model folder; a configuration alone has no weights: use scratch"
        )
    try:
        with quiet():
            if init == "pretrained":
                return AutoModel.from_pretrained(source, dtype=dtype).train()
            if isinstance(source, dict):
                settings = dict(source)
                config = AutoConfig.for_model(settings.pop("model_type", ""), **settings)
            else:
                config = AutoConfig.from_pretrained(source)
            return AutoModel.from_config(config, dtype=dtype).train()
    except Exception as err:  # each architecture fails in its own way
        message = " ".join(str(err).split())[:300]
        raise ArtifactError(f"transformers cannot make a user LLM of {str(source)[:200]}: {message}") from err


def _linear(n_in: int, n_out: int, device: torch.device) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, device=device)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer

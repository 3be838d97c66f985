"""Baichuan2-7B (Base and Chat) as the Llama that it is, without the Python code of its repository.

Its layers are Llama's; the projections of queries, keys and values are stored as one matrix, `W_pack`.
Its lm_head, whose rows Baichuan2 normalises, is not read: item vectors are hidden states. The tokenizer
is a sentencepiece BPE. Baichuan2-13B has linear position biases (ALiBi) and is no Llama.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hllm import artifacts
from hllm.errors import ArtifactError
from hllm.formats.weights import read_weights

MODEL_TYPE = "baichuan"
_CONFIG = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
_SPECIAL = ("unk_token", "bos_token", "eos_token", "pad_token")


def is_baichuan(path: Path) -> bool:
    """Whether the folder's configuration is Baichuan's."""
    config = path / "config.json"
    return config.is_file() and artifacts.read_json(config).get("model_type") == MODEL_TYPE


def load_model(path: Path, init: str = "pretrained", **options: Any) -> Any:
    """transformers' LlamaModel with the folder's weights, random ones for init "scratch"; `options` as of
    `from_pretrained`.

    Raises ArtifactError for the 13B, and for weights that lack a tensor or have one of another shape.
    """
    from transformers import LlamaModel

    config = llama_config(path)
    if init == "scratch":
        return LlamaModel._from_config(config, **options)
    state = split_packed(read_weights(path))
    with torch.device("meta"):
        expected = LlamaModel(config).state_dict()
    wrong = [n for n, t in expected.items() if n not in state or state[n].shape != t.shape]
    if wrong:
        raise ArtifactError(f"{path} lacks {len(wrong)} weights of a Baichuan2-7B, the first {wrong[0]!r}")
    return LlamaModel.from_pretrained(
        None, config=config, state_dict={name: state[name] for name in expected}, **options
    )


def llama_config(path: Path) -> Any:
    """The folder's configuration as Llama's; ArtifactError for the 13B."""
    from transformers import LlamaConfig

    settings = artifacts.read_json(path / "config.json")
    if "max_position_embeddings" not in settings:
        raise ArtifactError(
            f"{path} holds a Baichuan with position biases (the 13B), which has no native path here; "
            "use baichuan2 (7B Chat) or baichuan2-base, or --trust-remote-code on its own repository"
        )
    return LlamaConfig(**{name: settings[name] for name in _CONFIG if name in settings})


def split_packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under Llama's names: W_pack (3 d, d) as q, k and v (d, d) each; without the head."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("model.")
        if name.endswith("W_pack.weight"):
            stem = name.removesuffix("W_pack.weight")
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{stem}{part}_proj.weight"] = piece.contiguous()
        elif not name.startswith("lm_head"):
            out[name] = tensor
    return out


def load_tokenizer(path: Path) -> Any:
    """The folder's tokenizer.model, with the special tokens of tokenizer_config.json."""
    from tokenizers.processors import TemplateProcessing

    from hllm.items.encoders.sentencepiece import bpe_tokenizer

    file = path / "tokenizer_config.json"
    settings = artifacts.read_json(file) if file.is_file() else {}
    special = {name: _content(settings[name]) for name in _SPECIAL if settings.get(name)}
    tokenizer = bpe_tokenizer(path / "tokenizer.model", **special)
    limit = settings.get("model_max_length")
    tokenizer.model_max_length = limit if isinstance(limit, int) else tokenizer.model_max_length
    # Its own class adds the first token unless its configuration says otherwise, which Baichuan2's does.
    parts = [("bos_token", settings.get("add_bos_token", True)), ("eos_token", settings.get("add_eos_token"))]
    bos, eos = (special.get(name) if wanted else None for name, wanted in parts)
    if bos or eos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=" ".join(part for part in (bos, "$A", eos) if part),
            special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in {bos, eos} if t],
        )
    return tokenizer


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)

"""A trained item LLM as an ordinary folder: transformers' AutoModel and sentence-transformers load it.

The pooled vector is the one before whitening and adapter, which belong to the run. With learned item
tokens the folder holds them too, beside the model; sentence-transformers has no such pooling, so its
files are then left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hllm import artifacts
from hllm.items.encoders.backbones import quiet
from hllm.items.encoders.hub import ITEM_TOKENS
from hllm.items.encoders.packed import PackedEncoder

_ST_POOLING = {"mean": "mean_tokens", "last": "lasttoken", "cls": "cls_token"}


def save_item_llm(
    encoder: PackedEncoder,
    state: dict[str, Tensor],
    tokenizer: Any,
    folder: Path,
    max_tokens: int,
    prompt: str = "",
) -> None:
    """Write `encoder`'s model with the weights `state` (its own, or `merged_state` of a LoRA), its tokenizer,
    and sentence-transformers' description of prompt and pooling."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model: Any = encoder.backbone.model
    before = model.config._attn_implementation
    model.config._attn_implementation_internal = None  # ours is no setting of the model's
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    try:
        with quiet():
            model.save_pretrained(folder, state_dict=tensors)
    finally:
        model.config._attn_implementation_internal = before
    tokenizer.save_pretrained(folder)
    if encoder.item_token_n:
        save_file({"item_tokens": encoder.item_tokens.detach().cpu().contiguous()}, folder / ITEM_TOKENS)
        return
    limit = max_tokens + len(encoder.prefix)
    artifacts.write_json(folder / "modules.json", _modules())
    artifacts.write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False}
    )
    prompts = {"prompts": {"item": prompt}, "default_prompt_name": "item"} if prompt else {"prompts": {}}
    artifacts.write_json(folder / "config_sentence_transformers.json", prompts)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{name}": pooling == encoder.pooling for pooling, name in _ST_POOLING.items()}
    pooling = {"word_embedding_dimension": encoder.dim, **modes, "include_prompt": True}
    artifacts.write_json(folder / "1_Pooling" / "config.json", pooling)


def load_item_tokens(folder: Path) -> Tensor | None:
    """The learned tokens float (n, dim) of a folder, or None."""
    from safetensors.torch import load_file

    path = folder / ITEM_TOKENS
    return load_file(path)["item_tokens"] if path.is_file() else None


def copy_item_tokens(encoder: PackedEncoder, folder: Path) -> None:
    """Put a folder's learned tokens into `encoder`, where it has as many."""
    tokens = load_item_tokens(folder)
    if tokens is not None and encoder.item_token_n == len(tokens):
        with torch.no_grad():
            encoder.item_tokens.copy_(tokens)


def _modules() -> list[dict[str, Any]]:
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    return [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, path, kind in kinds
    ]

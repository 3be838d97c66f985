"""The item LLM of a finished run: in memory after training, in the run's folder afterwards.

A finished run ranks by a table of vectors; its item LLM is needed for items that come later, and is an ordinary
transformers folder, `RUN/item_llm`. It is loaded when it is first used.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.artifacts import write_json
from hllm.items.encoders.hub import ITEM_LLM_SETTINGS, weights_digest

if TYPE_CHECKING:
    import polars as pl

    from hllm.items.source.live import LiveText


READING = ("pooling", "prompt", "fields", "max_tokens", "item_emb_token_n", "right_aligned")


@dataclass
class TrainedLLM:
    """Either `live`, the source that was trained, or the `folder` that holds its model.

    spec  of the run's embeddings (items/live_items.py)
    """

    spec: dict[str, Any]
    live: LiveText | None = None
    folder: Path | None = None

    def encode(self, items: pl.DataFrame, device: str = "auto") -> tuple[np.ndarray, np.ndarray]:
        """Raw vectors float32 (m, dim) and has_text bool (m,) of the rows of `items`."""
        from hllm.items.store.new_items import encode_new_items, encode_with

        if self.live is None:
            return encode_new_items(self.folder_spec(), items, device)
        from hllm.items.encoders.packed_text import PackedTextEncoder, text_limit

        backbone, encoder = self.live.backbone, self.live.encoder
        assert backbone is not None
        limit = text_limit(backbone, self.spec["prompt"], self.spec["max_tokens"], encoder.item_token_n)
        spec = {**self.spec, "dim": encoder.dim}
        return encode_with(lambda: PackedTextEncoder(backbone, encoder, limit), spec, items)

    def folder_spec(self) -> dict[str, Any]:
        """The specification of embeddings made by the model in `folder`."""
        assert self.folder is not None
        own = {"model": str(self.folder.resolve()), "source": "folder", "revision": None}
        return {**self.spec, **own, "weights": self.spec.get("trained_weights")}

    def save(self, folder: Path) -> TrainedLLM:
        """Write the model to `folder` (or leave it there), and return it as it then stands."""
        if self.live is not None:
            from hllm.items.encoders.export import save_item_llm
            from hllm.items.source.lora import merged_state

            assert self.live.backbone is not None
            encoder = self.live.encoder
            state = merged_state(encoder.backbone.model)
            tokenizer, tokens = self.live.backbone.tokenizer, int(self.spec["max_tokens"])
            shutil.rmtree(folder, ignore_errors=True)
            save_item_llm(encoder, state, tokenizer, folder, tokens, self.spec["prompt"])
            write_json(folder / ITEM_LLM_SETTINGS, {name: self.spec[name] for name in READING})
        elif self.folder is not None and self.folder.resolve() != folder.resolve():
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        dim = self.spec["dim"] if self.live is None else self.live.encoder.dim
        spec = {**self.spec, "dim": dim, "trained_weights": weights_digest(folder)}
        return TrainedLLM(spec, folder=folder)

"""Run folders of earlier versions, read as today's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# Version 1 (hllm 0.1): one frozen source with everything in it, and the user model beside it.
_RENAMED = {
    "source.text": "source.parts.text.table",
    "source.has_text": "source.parts.text.has_text",
    "source.no_text": "source.parts.text.no_text",
    "source.id_embedding.weight": "source.parts.ids.weight",
}
_MOVED = {
    "source.whitening.": "source.parts.text.whitening.",
    "source.adapter.": "source.parts.text.adapter.",
    "user_model.": "model.user_model.",
    "scorer.": "model.scorer.",
}


def upgraded(
    document: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A version 1 `config.json` and its weights, as version 2 has them."""
    tensors = dict(tensors)
    # bool (n + 1,): rows of other items were masked, now they are zero.
    trained = tensors.pop("source.trained")
    new = {_new_name(name): value for name, value in tensors.items()}
    if "source.parts.ids.weight" in new:
        new["source.parts.ids.weight"] = new["source.parts.ids.weight"] * trained.unsqueeze(1)
    return {**document, "source": _source_spec(new), "version": 2}, new


def _new_name(name: str) -> str:
    if name in _RENAMED:
        return _RENAMED[name]
    for old, moved in _MOVED.items():
        if name.startswith(old):
            return moved + name.removeprefix(old)
    return name


def _source_spec(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The specification that version 1 left to be read off the shapes."""
    parts: dict[str, Any] = {}
    if (table := tensors.get("source.parts.text.table")) is not None:
        basis = tensors.get("source.parts.text.whitening.basis")
        last = tensors.get("source.parts.text.adapter.2.weight")
        parts["text"] = {
            "kind": "text_table",
            "n_items": table.shape[0] - 1,
            "rank": table.shape[1],
            "whitening": None if basis is None else list(basis.shape),
            "width": table.shape[1] if last is None else last.shape[0],
            "hidden": None if last is None else last.shape[1],
        }
    if (ids := tensors.get("source.parts.ids.weight")) is not None:
        parts["ids"] = {"kind": "ids", "n_items": ids.shape[0] - 1, "width": ids.shape[1]}
    return {"kind": "sum", "parts": parts}

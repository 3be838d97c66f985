"""Pooling "auto": vectors as a model's authors make them.

A sentence-transformers folder says it itself (modules.json): pooling, what is pooled, dense layers,
normalisation, prompts, longest text. For other models the table of short names says how they are pooled;
of what is in neither, an encoder is averaged and a causal model read at its last token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hllm import artifacts
from hllm.errors import ArtifactError
from hllm.items.encoders.registry import BACKBONES

MODULES = "modules.json"
# In the order in which sentence-transformers concatenates them.
_MODES = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    "weightedmean_tokens": "weighted-mean",
    "lasttoken": "last",
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x, "Tanh": torch.tanh, "ReLU": F.relu, "GELU": F.gelu, "Sigmoid": torch.sigmoid,
}  # fmt: skip
_PROMPTS = ("item", "document", "passage", "corpus")  # names under which the prompt for items may stand


@dataclass(frozen=True)
class Dense:
    """activation(weight x + bias)."""

    weight: Tensor
    bias: Tensor | None
    activation: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OwnWay:
    """How vectors are made.

    poolings     pooled vectors that are concatenated
    steps        what follows: a `Dense` or "normalize", in order
    prompt       put before every text that has no other prompt
    pools_prompt whether the prompt's tokens are pooled
    max_length   longest text in tokens, None for the model's
    lower        whether texts are made lower-case
    """

    poolings: tuple[str, ...]
    steps: tuple[Dense | str, ...] = ()
    prompt: str = ""
    pools_prompt: bool = True
    max_length: int | None = None
    lower: bool = False

    def dim(self, width: int) -> int:
        """Width of the vectors of a model whose states are `width` wide."""
        dense = [step for step in self.steps if isinstance(step, Dense)]
        return int(dense[-1].weight.shape[0]) if dense else width * len(self.poolings)

    def finish(self, vectors: Tensor) -> Tensor:
        """Pooled vectors float32 (n, d) through the dense layers and the normalisation."""
        for step in self.steps:
            if isinstance(step, Dense):
                weight = step.weight.to(vectors)
                bias = None if step.bias is None else step.bias.to(vectors)
                vectors = step.activation(F.linear(vectors, weight, bias))
            else:
                vectors = F.normalize(vectors, dim=-1)
        return vectors


def own_way(path: Path, model: str) -> OwnWay:
    """How the authors of the model in `path`, whose canonical name is `model`, make vectors.

    Raises ArtifactError for modules of sentence-transformers that are not known here.
    """
    if (path / MODULES).is_file():
        return _sentence_transformers(path)
    if known := BACKBONES.get(model):
        return OwnWay((known.pooling,))
    settings = artifacts.read_json(path / "config.json")
    names = " ".join(settings.get("architectures") or [])
    return OwnWay(("last" if "CausalLM" in names else "mean",))


def own_digest(path: Path, model: str) -> str:
    """What identifies `own_way`: sha256 over the files that describe it, or the pooling's name."""
    if not (path / MODULES).is_file():
        return own_way(path, model).poolings[0]
    files = [path / MODULES, path / "config_sentence_transformers.json", path / "sentence_bert_config.json"]
    for module in _modules(path):
        folder = path / module["path"]
        if module["path"] and folder.is_dir():
            files += sorted(p for p in folder.iterdir() if p.is_file())
    there = [file for file in files if file.is_file()]
    return artifacts.digest(*(part for f in there for part in (f.name, artifacts.digest_file(f))))


def _modules(path: Path) -> list[dict[str, str]]:
    found = artifacts.read_json(path / MODULES)
    try:
        return [
            {"kind": str(m["type"]).rpartition(".")[2], "path": str(m.get("path") or "")}
            for m in sorted(found, key=lambda m: int(m["idx"]))
        ]
    except (TypeError, KeyError, ValueError) as err:
        raise ArtifactError(f"{path / MODULES} lists no modules; bring it again") from err


def _sentence_transformers(path: Path) -> OwnWay:
    poolings: tuple[str, ...] = ("mean",)
    pools_prompt, steps = True, list[Dense | str]()
    for module in _modules(path):
        folder, kind = path / module["path"], module["kind"]
        if kind == "Pooling":
            config = _settings(folder / "config.json")
            poolings = _poolings(folder, config)
            pools_prompt = bool(config.get("include_prompt", True))
        elif kind == "Dense":
            steps.append(_dense(folder))
        elif kind == "Normalize":
            steps.append("normalize")
        elif kind not in ("Transformer", "Dropout"):
            raise ArtifactError(
                f"{path} has a module {kind!r}; pooling 'auto' knows Pooling, Dense and Normalize"
            )
    settings = _settings(path / "sentence_bert_config.json")
    return OwnWay(
        poolings,
        tuple(steps),
        _prompt(_settings(path / "config_sentence_transformers.json")),
        pools_prompt,
        settings.get("max_seq_length"),
        bool(settings.get("do_lower_case", False)),
    )


def _settings(file: Path) -> dict[str, Any]:
    found = artifacts.read_json(file) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _poolings(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    on = [n.removeprefix("pooling_mode_") for n, v in config.items() if n.startswith("pooling_mode_") and v]
    if isinstance(named := config.get("pooling_mode"), str):
        on = [
            {"cls": "cls_token", "mean": "mean_tokens", "weightedmean": "weightedmean_tokens"}.get(
                named, named
            )
        ]
    unknown = [name for name in on if name not in _MODES]
    if unknown or not on:
        raise ArtifactError(
            f"{folder} pools by {', '.join(unknown) or 'nothing'}; known: {', '.join(_MODES)}; name a pooling instead"
        )
    return tuple(ours for theirs, ours in _MODES.items() if theirs in on)


def _dense(folder: Path) -> Dense:
    from safetensors.torch import load_file

    config = _settings(folder / "config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise ArtifactError(f"{folder} has the activation {name!r}; known are {', '.join(_ACTIVATIONS)}")
    try:
        if (folder / "model.safetensors").is_file():
            state = load_file(folder / "model.safetensors")
        else:
            state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        return Dense(state["linear.weight"].float(), state.get("linear.bias"), _ACTIVATIONS[name])
    except Exception as err:  # damaged files fail in many ways
        raise ArtifactError(
            f"cannot read the dense layer in {folder}: {' '.join(str(err).split())[:200]}"
        ) from err


def _prompt(settings: dict[str, Any]) -> str:
    prompts = settings.get("prompts") or {}
    for name in (*_PROMPTS, settings.get("default_prompt_name")):
        if isinstance(found := prompts.get(name), str) and found:
            return found
    return ""

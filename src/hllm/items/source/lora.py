"""Low-rank adapters (LoRA; Hu et al., 2022) on every linear layer of an item LLM, by `peft`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hllm.errors import ConfigError


def add_lora(model: nn.Module, rank: int = 16, alpha: int = 32, dropout: float = 0.0) -> None:
    """Freeze `model` and put trainable adapters of `rank` beside its linear layers, in place.

    They start at zero, so nothing changes at first. Raises ConfigError without `peft`.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as err:
        raise ConfigError(
            "items.train=lora needs the package peft: pip install 'hllm[peft]', or use items.train=full"
        ) from err
    model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")
    inject_adapter_in_model(config, model)


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of `model` under its ordinary names, adapters added in; `model` stays as it is."""
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    state = {}
    for name, value in model.state_dict().items():
        if ".lora_" in name:
            continue
        owner = name.rpartition(".base_layer.")[0]
        if owner in layers and name.endswith(".base_layer.weight"):
            layer = layers[owner]
            for adapter in layer.active_adapters:
                value = value + layer.get_delta_weight(adapter).to(value.dtype)
        state[name.replace(".base_layer.", ".")] = value
    return state

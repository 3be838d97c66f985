"""A transformers model without head, made of a configuration and weights that are in memory or mapped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hllm.errors import ArtifactError
from hllm.items.encoders import baichuan
from hllm.items.encoders.backbones import quiet

# Heads, and tables that are computed: in a checkpoint, not in the model.
_EXTRA = re.compile(r"(lm_head|cls|pooler)\..*|.*(inv_freq|position_ids|rotary_emb\..*|attn\.(masked_)?bias)")


def model_config(folder: Path) -> Any:
    """The configuration in a model folder, Baichuan2's as the Llama that it is.

    Raises ArtifactError for one that transformers does not know."""
    if baichuan.is_baichuan(folder):
        return baichuan.llama_config(folder)
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(folder)
    except Exception as err:  # each architecture fails in its own way
        message = " ".join(str(err).split())[:200]
        raise ArtifactError(
            f"transformers cannot read the configuration in {folder}: {message}; give a model's folder or name"
        ) from err


def model_from_state(
    config: Any, state: Mapping[str, Tensor], where: str, name: str, option: str, words: bool = True
) -> nn.Module:
    """The model of `config`, in float32, with the weights `state` under the names of any of its classes.

    Weights in float32 are not copied. `where` (file and prefix of the names), `name` of the model and the `option`
    that named it are for errors; with `words` false the word embeddings may be missing: 32 random ones are taken.

    Raises ArtifactError naming the first weight that is missing, left over or of another shape.
    """
    from transformers import AutoModel

    if any("W_pack" in key for key in state):
        state = baichuan.split_packed(dict(state))
    if not words:
        config.vocab_size, config.pad_token_id = 32, None
    with torch.device("meta"), quiet():
        empty: Any = AutoModel.from_config(config)
    expected = empty.state_dict()
    prefix = f"{empty.base_model_prefix}."
    given = {key.removeprefix(prefix): (key, value) for key, value in state.items()}
    table = next((n for n, p in empty.named_parameters() if p is empty.get_input_embeddings().weight), "")
    if not words:
        dim, generator = expected[table].shape[1], torch.Generator().manual_seed(0)
        given[table] = (table, torch.randn(32, dim, generator=generator))
    advice = f"name the model that it was trained from: {option}"
    for key, wanted in expected.items():
        if key not in given and not _EXTRA.fullmatch(key):
            raise ArtifactError(
                f"{where}{prefix}{key} is missing, expected {tuple(wanted.shape)} for {name}; {advice}"
            )
        if key in given and given[key][1].shape != wanted.shape:
            full, value = given[key]
            raise ArtifactError(
                f"{where}{full} is {tuple(value.shape)}, expected {tuple(wanted.shape)} for {name}; {advice}"
            )
    for key, (full, value) in given.items():
        if key not in expected and not _EXTRA.fullmatch(key):
            raise ArtifactError(
                f"{where}{full} {tuple(value.shape)} is more than {name} has, expected none; {advice}"
            )
    weights = {key: value for key, (_, value) in given.items() if key in expected}
    with quiet():
        return type(empty).from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)

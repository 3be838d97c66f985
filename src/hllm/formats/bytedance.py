"""Checkpoints of ByteDance's HLLM (github.com/bytedance/HLLM): one state_dict with both language models.

    item_llm.*, user_llm.*   weights, under the names of their class in transformers
    item_emb_tokens          (1, n, d): what replaces the embeddings of the n tokens after each text; absent
                             where texts are mean-pooled
    logit_scale              (): logarithm of what cosines are multiplied by, kept within 0 and ln 100

Wrappers add to the names (`module.` by DDP and DeepSpeed, `_orig_mod.` by torch.compile) or put the state_dict
into a dictionary beside optimiser and counters (`module`, `model`, `state_dict`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.artifacts import atomic
from hllm.errors import ArtifactError
from hllm.formats.weights import read_file, read_weights

if TYPE_CHECKING:
    from torch import Tensor

ITEM, USER, ITEM_TOKENS, LOGIT_SCALE = "item_llm.", "user_llm.", "item_emb_tokens", "logit_scale"
_WRAPPED = ("module", "model", "state_dict")
_INSIDE = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_NAME = re.compile(
    r"(?:(?:module|model|_forward_module)\.)*((?:item_llm|user_llm)\..+|item_emb_tokens|logit_scale)"
)
_ADVICE = (
    "give the pytorch_model.bin of ByteDance's HLLM, or what DeepSpeed's zero_to_fp32.py makes of ZeRO files"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's tensors, mapped from the disk.

    item_llm, user_llm  by name without `item_llm.` and `user_llm.`
    item_tokens         (n, d), or None where texts are mean-pooled
    logit_scale         ()
    """

    path: Path
    item_llm: dict[str, Tensor]
    user_llm: dict[str, Tensor]
    item_tokens: Tensor | None
    logit_scale: Tensor


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint: a file, an index of shards (`*.index.json`), or a folder with either.

    Tensors are mapped, so nothing is in memory yet. Raises ArtifactError for a file that is missing, damaged, asks
    for code, or is no such checkpoint, naming the key that is missing or wrong.
    """
    state = _state(path)
    found = {"item_llm": _below(state, ITEM), "user_llm": _below(state, USER)}
    for name, tensors in found.items():
        if not tensors:
            others = ", ".join(list(state)[:3])
            raise ArtifactError(
                f"{path} has no {name}.* weights" + (f" (but {others})" if others else "") + f"; {_ADVICE}"
            )
    if LOGIT_SCALE not in state:
        raise ArtifactError(
            f"{path} has no {LOGIT_SCALE}: expected a single number, found no such key; {_ADVICE}"
        )
    tokens, scale = state.get(ITEM_TOKENS), state[LOGIT_SCALE]
    if scale.numel() != 1:
        raise ArtifactError(f"{path}: {LOGIT_SCALE} is {_shape(scale)}, expected (); {_ADVICE}")
    if tokens is not None:
        if tokens.dim() not in (2, 3) or (tokens.dim() == 3 and len(tokens) != 1) or not tokens.numel():
            raise ArtifactError(f"{path}: {ITEM_TOKENS} is {_shape(tokens)}, expected (1, 1, d); {_ADVICE}")
        tokens = tokens.reshape(-1, tokens.shape[-1])
    return Checkpoint(path, **found, item_tokens=tokens, logit_scale=scale.reshape(()))


def write_checkpoint(
    path: Path,
    item_llm: Mapping[str, Tensor],
    user_llm: Mapping[str, Tensor],
    item_tokens: Tensor | None,
    logit_scale: Tensor,
) -> None:
    """Write a checkpoint under ByteDance's names; `item_tokens` (n, d)."""
    import torch

    state = {f"{ITEM}{name}": value for name, value in item_llm.items()}
    state |= {f"{USER}{name}": value for name, value in user_llm.items()}
    if item_tokens is not None:
        state[ITEM_TOKENS] = item_tokens.unsqueeze(0)
    state[LOGIT_SCALE] = logit_scale.reshape(())
    with atomic(path) as temporary:
        torch.save({name: value.detach().cpu() for name, value in state.items()}, temporary)


def _state(path: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors under their plain names."""
    import torch

    raw = _raw(path)
    for _ in range(3):  # a state_dict in a dictionary in a dictionary
        named = _plain(raw)
        inner = [raw[key] for key in _WRAPPED if isinstance(raw.get(key), Mapping)] if not named else []
        if not inner:
            break
        raw = inner[0]
    if not named:
        keys = ", ".join(map(str, list(raw)[:3])) or "nothing"
        raise ArtifactError(f"{path} has no {ITEM}* and {USER}* weights, but {keys}; {_ADVICE}")
    for name, value in named.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ArtifactError(f"{path}: {name} is {kind}, expected numbers with a fraction; {_ADVICE}")
    return named


def _raw(path: Path) -> Mapping[Any, Any]:
    """What the file, its shards or the folder hold."""
    if not path.exists():
        raise ArtifactError(f"{path} not found; {_ADVICE}")
    if path.is_file() and not path.stat().st_size:
        raise ArtifactError(f"{path} is empty; download it again: {_ADVICE}")
    try:
        if path.is_dir() or path.name.endswith(".index.json"):
            return read_weights(path if path.is_dir() else path.parent)
        found = read_file(path)
    except ArtifactError as err:
        if "refused" in str(err):
            raise ArtifactError(
                f"{err}. Where you trust it, save its weights alone in Python, by "
                "torch.save(torch.load(FILE, weights_only=False)['model'], 'pytorch_model.bin')"
            ) from err
        raise ArtifactError(f"{err}; if it was cut off, download it again") from err
    if not isinstance(found, Mapping):
        raise ArtifactError(f"{path} holds a {type(found).__name__}, no state_dict; {_ADVICE}")
    return found


def _plain(raw: Mapping[Any, Any]) -> dict[str, Any]:
    """What of `raw` has a name of such a checkpoint, under that name."""
    matches = ((_NAME.fullmatch(_INSIDE.sub("", key)), v) for key, v in raw.items() if isinstance(key, str))
    return {match[1]: value for match, value in matches if match}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))

"""A `model.pth` of torch-rechub: from parameters back to a model that scores and recommends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hllm.compat.rechub.bias import MASKED
from hllm.compat.rechub.hllm import HLLMModel
from hllm.compat.rechub.hstu import HSTUModel
from hllm.compat.rechub.states import STATES, State, check
from hllm.errors import ArtifactError, ConfigError
from hllm.formats.rechub import read_model

Parameters = dict[str, Tensor]


def load_model(path: Path | str, state: State | None = None, **settings: Any) -> HLLMModel | HSTUModel:
    """Build the model whose parameters `path` holds, ready to evaluate.

    Sizes and, where `state` is None, the state are read from the parameters: 0.9 stores unit item
    vectors in HLLM and other layers in HSTU. What parameters do not show (dropout, temperature,
    time_bucket_fn, score_norm, ...) keeps the classes' defaults; pass it in `settings`.

    Raises ArtifactError where the file is no such model, ConfigError where `settings` contradict it.
    """
    parameters = read_model(path)
    if "transformer_blocks.0.W_Q.weight" in parameters:
        found, guess = _hllm_sizes(parameters)
        model_class: type[HLLMModel | HSTUModel] = HLLMModel
    elif "hstu_block.layers.0.proj1.weight" in parameters:
        found, guess = _hstu_sizes(parameters)
        model_class = HSTUModel
    else:
        raise ArtifactError(
            f"{path} holds neither HLLM's nor HSTU's parameters, but {', '.join(list(parameters)[:3])}"
        )
    state = guess if state is None else state
    check("state", state, STATES)
    if wrong := [k for k, v in settings.items() if k in found and k != "item_embeddings" and found[k] != v]:
        raise ConfigError(
            f"{wrong[0]}={settings[wrong[0]]!r} contradicts {path}, which has {found[wrong[0]]!r}"
        )
    model = model_class(**(found | settings), state=state)
    try:
        model.load_state_dict(parameters)
    except RuntimeError as err:
        raise ArtifactError(
            f"{path} does not fit state {state!r}: {' '.join(str(err).split())[:300]}"
        ) from err
    return model.eval()


def _hllm_sizes(p: Parameters) -> tuple[dict[str, Any], State]:
    vectors = p["item_embeddings"]
    norms = vectors.norm(dim=1)
    unit = bool((((norms - 1).abs() < 1e-3) | (norms == 0)).all())
    timed, biased = "time_embedding.weight" in p, "rel_pos_bias.rel_pos_bias_table" in p
    sizes: dict[str, Any] = {
        "item_embeddings": vectors,
        "vocab_size": vectors.shape[0],
        "d_model": vectors.shape[1],
        "n_layers": _layers(p, "transformer_blocks"),
        "max_seq_len": p["position_embedding.weight"].shape[0],
        "use_rel_pos_bias": biased,
        "use_time_embedding": timed,
    }
    if timed:
        sizes["num_time_buckets"] = p["time_embedding.weight"].shape[0] - 1
    if biased:
        sizes["n_heads"] = p["rel_pos_bias.rel_pos_bias_table"].shape[1]
    return sizes, "rechub" if unit else "rechub-doc"


def _hstu_sizes(p: Parameters) -> tuple[dict[str, Any], State]:
    doc = "hstu_block.layers.0.rab.pos_w" not in p
    timed, table = "time_embedding.weight" in p, p.get("rel_pos_bias.rel_pos_bias_table")
    vocab_size, d_model = p["token_embedding.weight"].shape
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "n_layers": _layers(p, "hstu_block.layers"),
        "max_seq_len": p["position_embedding.weight"].shape[0],
        "use_time_embedding": timed,
    }
    if doc:
        sizes["use_rel_pos_bias"] = table is not None
        n_heads = None if table is None else table.shape[1]
        if timed:
            sizes["num_time_buckets"] = p["time_embedding.weight"].shape[0] - 1
    else:
        n_heads = p["hstu_block.layers.0.rab.pos_w"].shape[1]
        sizes["num_time_buckets"] = p["hstu_block.layers.0.rab.ts_w"].shape[0] - 1
        sizes["tie_embeddings"] = "output_projection.weight" not in p
        sizes["use_output_bias"] = "output_bias" in p or "output_projection.bias" in p
    if n_heads is not None:
        gate = p["hstu_block.layers.0.proj2.weight"].shape[1]  # H dv
        both = p["hstu_block.layers.0.proj1.weight"].shape[0] // 2  # H (dqk + dv)
        sizes |= {"n_heads": n_heads, "dv": gate // n_heads, "dqk": (both - gate) // n_heads}
    return sizes, "rechub-doc" if doc else "rechub"


def _layers(p: Parameters, prefix: str) -> int:
    return 1 + max(int(name[len(prefix) + 1 :].split(".")[0]) for name in p if name.startswith(prefix + "."))


@torch.no_grad()
def score_windows(model: nn.Module, tokens: Tensor, seconds: Tensor, hide_seen: bool = False) -> Tensor:
    """Scores float32 (B, V) of the next item after left-padded windows (B, L); padding is hidden.

    `hide_seen` also hides the windows' own items.
    """
    device = next(model.parameters()).device
    tokens = torch.as_tensor(tokens, dtype=torch.long, device=device)
    model.eval()
    scores = model(tokens, torch.as_tensor(seconds, dtype=torch.long, device=device))[:, -1].float()
    if hide_seen:
        scores = scores.scatter(1, tokens, MASKED)
    scores[:, 0] = MASKED
    return scores


def rank_windows(
    model: nn.Module, loader: Iterable[Sequence[Tensor]], k: int, hide_seen: bool = False
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """True item and k best items by window number: what `topk_metrics` takes, from a loader of windows."""
    truth: dict[int, list[int]] = {}
    ranked: dict[int, list[int]] = {}
    for tokens, _, seconds, targets in loader:
        scores = score_windows(model, tokens, seconds, hide_seen)
        best = scores.topk(min(k, scores.shape[1] - 1), dim=1).indices.tolist()
        for target, items in zip(targets.flatten().tolist(), best, strict=True):
            truth[len(truth)], ranked[len(ranked)] = [target], items
    return truth, ranked

"""Weights of torch-rechub's lightweight HLLM, from a network of ours and into one."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from hllm.errors import ArtifactError
from hllm.items.source.joined import Sum
from hllm.items.source.text_table import TextTable
from hllm.models.hllm import Network
from hllm.models.rechub import RechubUserModel


def rechub_weights(network: Network) -> dict[str, Tensor]:
    """The network's weights as torch-rechub's `model.pth` has them: its names, vectors row = token.

    Added items are included. Raises ArtifactError for a network that is not torch-rechub's model.
    """
    model, text = _parts(network)
    vectors = text.table
    table = F.normalize(vectors, dim=-1) if model.unit else vectors
    return {"item_embeddings": table.detach().clone()} | {k: v.clone() for k, v in model.state_dict().items()}


def load_rechub_weights(network: Network, weights: Mapping[str, Tensor]) -> None:
    """Take over the weights of a `model.pth` (formats.rechub.read_model).

    Item vectors are replaced too where their number and width agree. Raises ArtifactError, naming
    the first difference, where the weights are another model's.
    """
    model, text = _parts(network)
    vectors = weights.get("item_embeddings")
    if vectors is None:
        raise ArtifactError(f"no item_embeddings among the weights, but {', '.join(list(weights)[:3])}")
    if vectors.shape != text.table.shape:
        raise ArtifactError(
            f"item_embeddings have shape {tuple(vectors.shape)}, this dataset's {tuple(text.table.shape)}: "
            "the weights were trained on other data or with another item LLM"
        )
    try:
        model.load_state_dict({k: v for k, v in weights.items() if k != "item_embeddings"})
    except RuntimeError as err:
        reason = str(err).splitlines()[-1].strip()
        raise ArtifactError(f"the weights do not fit: {reason}; check max_len, n_layers, n_heads") from err
    text.table.copy_(vectors)
    network.train(network.training)


def _parts(network: Network) -> tuple[RechubUserModel, TextTable]:
    model = network.model.user_model
    text = network.source.parts["text"] if isinstance(network.source, Sum) else None
    if not (isinstance(model, RechubUserModel) and isinstance(text, TextTable)):
        raise ArtifactError("model.pth holds torch-rechub's model; train with preset rechub or rechub-doc")
    return model, text

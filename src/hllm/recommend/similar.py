"""Items like an item or like a free text, and histories searched with a text."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.arguments import is_number
from hllm.errors import ConfigError
from hllm.items.source.base import ItemSource
from hllm.items.source.ids import Ids
from hllm.items.source.joined import Joined
from hllm.items.source.text_table import TextTable
from hllm.packing import Batch, last_positions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hllm.items.trained import TrainedLLM
    from hllm.models.hllm import ItemTable, Network


def text_vector(
    network: Network,
    spec: Mapping[str, Any] | None,
    text: Any,
    device: str = "auto",
    llm: TrainedLLM | None = None,
) -> Tensor:
    """Vector (w,) of a free text: as of a new item whose first text field it is, made by the run's item LLM.

    spec  of the run's item embeddings. Raises ConfigError where the run has no item LLM, or one whose vectors belong
    to one catalogue.
    """
    import polars as pl

    from hllm.items.store.new_items import encode_new_items

    parts = [m for m in network.source.modules() if isinstance(m, ItemSource)]
    if spec is None or not all(isinstance(part, TextTable | Ids | Joined) for part in parts):
        raise ConfigError(
            "this run reads no text through an item LLM with a table of vectors, so no item can be found by a text; "
            "train with item_llm, for example --set item_llm=smollm2-135m"
        )
    if not spec["fields"]:
        raise ConfigError(
            f"the item vectors of this run, {spec['model']}, were brought in: no model here reads a text"
        )
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"text={text!r}: write what to look for, in words")
    fields = list(spec["fields"])
    texts = {name: [text if name == fields[0] else None] for name in fields}
    frame = pl.DataFrame(texts, dict.fromkeys(fields, pl.String))
    vectors, has_text = encode_new_items(spec, frame, device) if llm is None else llm.encode(frame, device)
    source = detached(network.source)
    with torch.no_grad():
        source.extend(torch.from_numpy(vectors), torch.from_numpy(has_text))
        last = torch.tensor([source.n_items], device=next(iter(network.state_dict().values())).device)
        return source.eval().encode(last)[0]


def detached(module: Any) -> Any:
    """A module with the same tensors, which can be replaced in it without a change to the first."""
    twin = copy(module)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    twin._modules = {name: None if m is None else detached(m) for name, m in module._modules.items()}
    return twin


class Likeness(nn.Module):
    """Ranks by the cosine with one vector (w,), whoever asks."""

    def __init__(self, network: Network, vector: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("vector", F.normalize(vector.float(), dim=0))
        self.eval()  # what ranks in training mode is put back into it, and the network with it

    def table(self) -> ItemTable:
        return self.network.table()

    def query(self, batch: Batch) -> Tensor:
        """The vector float32 (U, w), for each user."""
        return self.get_buffer("vector").expand(batch.n_users, -1)

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Cosines float32 (U, m) with the items `tokens` int64 (m,)."""
        return query @ F.normalize(self.table().raw[tokens].float(), dim=1).T


class Searched(nn.Module):
    """Ranks by history and text together: (1 - weight) of the model's query and `weight` of the text's, which is
    scaled to the same length. Without a history the text alone counts.

    The score of an item is then the weighted mean of what both give it.
    """

    def __init__(self, network: Network, vector: Tensor, weight: float) -> None:
        super().__init__()
        self.network, self.weight = network, weight
        self.register_buffer("vector", network.model.scorer.query(vector.unsqueeze(0))[0].detach())
        self.eval()  # as above

    def table(self) -> ItemTable:
        return self.network.table()

    def query(self, batch: Batch) -> Tensor:
        """Queries float32 (U, w)."""
        text = self.get_buffer("vector").expand(batch.n_users, -1)
        known = batch.lengths > 0
        if not bool(known.any()):
            return text
        hidden = self.network.model.hidden(batch, self.table().raw[batch.tokens])
        found = known.to(text.device)
        taste = self.network.model.scorer.query(hidden[last_positions(batch.offsets)[found]])
        scaled = F.normalize(text[found], dim=1) * taste.norm(dim=1, keepdim=True)
        return text.clone().masked_scatter_(
            found.unsqueeze(1), (1 - self.weight) * taste + self.weight * scaled
        )

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m) of the items `tokens` int64 (m,)."""
        return self.network.score(query, tokens)

    def score_range(self, query: Tensor, first: int, stop: int) -> Tensor:
        """Scores float32 (U, stop - first) of a range of tokens."""
        return self.network.score_range(query, first, stop)


def check_weight(weight: Any) -> float:
    """`text_weight` as a number from 0 (taste alone) to 1 (text alone); ConfigError for another."""
    if not is_number(weight) or not 0 <= weight <= 1:
        raise ConfigError(f"text_weight={weight!r}: a number from 0 (history alone) to 1 (text alone)")
    return float(weight)

"""Texts to vectors without padding, with gradient: a pack of texts, one forward, one pooled vector each.

    [prefix | text 1, item tokens | text 2, item tokens | ...]  ->  states  ->  vectors (n, dim)

The prompt's tokens are the same for every text. In a causal model nothing that follows changes their
keys and values, so they stand in the pack once and every text continues from them; the gradient flows
back through them like through any token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hllm.errors import ConfigError
from hllm.items.config import split_pooling
from hllm.items.encoders.pack import Pack
from hllm.items.encoders.packed_model import PackedModel
from hllm.packing import offsets_of, positions_in_segment

ITEM_TOKEN_STD = 0.02  # ByteDance's


class PackedEncoder(nn.Module):
    """Vectors of texts that are given as token ids.

    model         a transformers PreTrainedModel without head, decoder or encoder
    pooling       "mean" over all tokens, "weighted-mean" (weights 1, 2, 3, ...; SGPT), "last" or "cls" (first)
                  token, each also of other layers ("mean@6", "mean@last4"); "item-token" (the mean of the
                  last layer's states at `item_token_n` learned tokens after the text)
    prefix        token ids of the prompt that every text begins with
    item_token_n  learned tokens appended to each text, from normal(0, .02) (ByteDance's `item_emb_token_n`);
                  0 unless pooling is "item-token"
    align_to      position ids end at this length (right-aligned, as ByteDance's), None to begin at 0. Where
                  only differences of positions matter this changes rounding alone and is left out
    shares_prefix (attribute) whether the prefix is run once a pack

    Raises ConfigError for an unknown pooling, or item tokens that are not pooled.
    """

    def __init__(
        self,
        model: nn.Module,
        pooling: str = "mean",
        prefix: Sequence[int] = (),
        item_token_n: int = 0,
        align_to: int | None = None,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        how, layers = split_pooling(pooling)
        if how == "auto":
            raise ConfigError("pooling 'auto' is read from a model's folder; name the pooling here")
        if (pooling == "item-token") != (item_token_n >= 1):
            raise ConfigError(
                f"pooling {pooling!r} with item_emb_token_n={item_token_n}: item-token needs >= 1"
            )
        self.backbone = PackedModel(model, pad_id, layers)
        self.pooling, self.how, self.item_token_n = pooling, how, item_token_n
        self.align_to = None if self.backbone.relative else align_to
        parameter = next(model.parameters())
        self.register_buffer("prefix", None, persistent=False)
        self.set_prefix(prefix)
        if item_token_n:
            tokens = torch.empty(item_token_n, self.dim, dtype=parameter.dtype).normal_(std=ITEM_TOKEN_STD)
            self.item_tokens = nn.Parameter(tokens.to(parameter.device))

    prefix: Tensor

    def set_prefix(self, prefix: Sequence[int]) -> None:
        """Take `prefix` as the token ids that every text begins with from now on."""
        device = next(self.backbone.parameters()).device
        self.prefix = torch.tensor(list(prefix), dtype=torch.long, device=device)
        self.shares_prefix = (
            len(prefix) > 0 and self.backbone.packed and self.backbone.causal and self.align_to is None
        )

    @property
    def dim(self) -> int:
        return self.backbone.dim

    def text_tokens(self, lengths: Tensor) -> Tensor:
        """Tokens that texts of `lengths` (n,) cost beside a shared prefix."""
        return lengths + self.item_token_n + (0 if self.shares_prefix else len(self.prefix))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Vectors (n, dim), float32 or wider, of the texts whose `ids` int64 (t,) lie end to end.

        `lengths` int64 (n,) on the CPU, each at least 1 (0 where a prefix or item tokens follow); `ids` are
        without the prefix.
        """
        shared, device = self.shares_prefix, self.prefix.device
        full, learned = self._assemble(ids.to(device), lengths)
        whole = self.text_tokens(lengths).tolist()
        pack = Pack(
            [len(self.prefix), *whole] if shared else whole, device, len(self.prefix) if shared else 0
        )
        if self.align_to is not None:
            pack.starts = self.align_to - torch.tensor(pack.lengths)
        if learned is None:
            states = self.backbone(pack, full)
        else:
            embeds = self.backbone.embed(full)
            tokens = self.item_tokens.repeat(len(whole), 1).to(embeds.dtype)
            states = self.backbone(pack, embeds=embeds.index_copy(0, learned, tokens))
        return self._pool(states if states.dtype == torch.float64 else states.float(), whole, pack)

    def _assemble(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Ids (T,) of the pack, and where the learned tokens stand in it."""
        n, p, k, device = len(lengths), len(self.prefix), self.item_token_n, self.prefix.device
        once = p if self.shares_prefix else 0  # tokens before the first text
        own = p - once  # prefix tokens of each text
        first = (once + offsets_of(lengths + own + k)[:-1].long()).to(device)  # each text's first slot
        dev = lengths.to(device)
        total = once + int(lengths.sum()) + n * (own + k)
        full = torch.full((total,), 1, dtype=torch.long, device=device)
        full[:once] = self.prefix[:once]
        if own:
            full[(first.unsqueeze(1) + torch.arange(own, device=device)).flatten()] = self.prefix.repeat(n)
        inside = torch.repeat_interleave(first + own - offsets_of(lengths)[:-1].to(device), dev)
        full[inside + torch.arange(len(ids), device=device)] = ids
        if not k:
            return full, None
        return full, ((first + own + dev).unsqueeze(1) + torch.arange(k, device=device)).flatten()

    def _pool(self, states: Tensor, whole: list[int], pack: Pack) -> Tensor:
        """One vector a text; a shared prefix belongs to every text's mean."""
        once = pack.prefix
        ends = pack.offsets[1:].long()[1 if once else 0 :]
        if self.how == "last":
            return states[ends - 1]
        if self.how == "item-token":
            back = torch.arange(-self.item_token_n, 0, device=ends.device)
            return states[ends.unsqueeze(1) + back].mean(1)
        lengths = torch.tensor(whole, device=states.device)
        if self.how == "cls":
            return states[:1].expand(len(whole), -1) if once else states[ends - lengths]
        total = lengths + once
        if self.how == "weighted-mean":
            steps = positions_in_segment(pack.offsets, pack.total) + 1
            steps[once:] += once
            states = states * steps.unsqueeze(1)
            total = total * (total + 1) / 2
        if states.device.type == "cpu":  # where reducing by segment runs a number at a time
            runs = pack.runs[1 if once else 0 :]
            parts = [states[at : at + n * k].reshape(n, k, self.dim).sum(1) for at, n, k, _ in runs]
            sums = torch.cat(parts) if parts else states[:0]
        else:
            sums = torch.segment_reduce(states[once:], "sum", lengths=lengths, unsafe=True)
        return (sums + states[:once].sum(0)) / total.unsqueeze(1)

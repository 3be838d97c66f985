"""Item vectors from a language model that is trained with the user model.

    token ids -> item LLM -> pooling -> whitening -> adapter -> vector (width,)

Whitening and adapter are those of the frozen table (text_table.py), so training starts where the frozen
source stands. A step encodes the distinct items that it needs, each once, in chunks of texts of similar
length; caching.py decides what is kept for the backward pass.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hllm import hardware
from hllm.errors import ConfigError, DeviceError, unknown
from hllm.items.encoders.backbones import Backbone
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.tokens import Ragged
from hllm.items.source.base import ItemSource, Lease
from hllm.items.source.caching import (
    MODES,
    Chunks,
    Plan,
    choose_plan,
    counting_saved,
    free_memory,
    plan_chunks,
    random_state,
    set_random_state,
)
from hllm.items.source.lora import add_lora
from hllm.items.source.text_table import TextTable
from hllm.items.source.whitening import Whitening
from hllm.ranks import ALONE, Ranks

log = logging.getLogger(__name__)
TRAIN = ("frozen", "lora", "full")
MEMORY_SHARE = 0.7  # of the free memory; the user half of the step takes from the rest
SAMPLE_TOKENS = 1024  # of the texts on which the memory of a graph is measured
NO_GRAD_CHUNKS = 4  # chunks without a graph may be so many times larger


class LiveText(ItemSource):
    """adapter(whitened vector of the item's text), computed by `encoder`; an item without text has a vector of
    its own, learned (`no_text`), or zero where there is no adapter.

    texts         token ids without the encoder's prefix, row = token; an empty row is an item without text
                  (row 0, padding, always is)
    train         "full", "lora" (the LLM's linear layers get low-rank adapters), "frozen"; learned item tokens
                  are trained with each of them
    mode          "auto" (by free memory, cheapest first), "graph", "checkpoint" or "cache" (caching.py)
    chunk_tokens  text tokens run at once, at most; out of memory halves it for good
    backbone      the loaded model with its tokenizer, where texts may be added or the model saved later
    plan          (attribute) what the last lease did
    bf16          (attribute) whether the item LLM runs in bf16 outside of training too
    ranks         (attribute) where several processes train: each encodes a share of a step's texts, and all get the
                  vectors of all. `sharded`: they hold parts of the item LLM's weights too, so all run equally often
    backward_by   (attribute) as in `Chunks`

    Raises ConfigError for an unknown `train` or `mode`, and for "lora" without peft.
    """

    static = False

    def __init__(
        self,
        encoder: PackedEncoder,
        texts: Ragged,
        whitening: Whitening | None = None,
        adapter: nn.Sequential | None = None,
        train: str = "full",
        mode: str = "auto",
        chunk_tokens: int = 16_384,
        lora: dict[str, Any] | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        super().__init__()
        if train not in TRAIN:
            raise ConfigError(unknown("items.train", train, TRAIN))
        if mode not in ("auto", *MODES):
            raise ConfigError(unknown("gradient mode", mode, ("auto", *MODES)))
        self.encoder, self.whitening, self.adapter = encoder, whitening, adapter
        self.train_what, self.mode, self.lora = train, mode, dict(lora or {})
        self.register_buffer("text_ids", texts.flat)
        self.register_buffer("text_offsets", texts.offsets)
        rank = encoder.dim if whitening is None else whitening.basis.shape[1]
        self.width = rank if adapter is None else adapter[-1].out_features  # type: ignore[assignment]
        if adapter is not None:
            self.no_text = nn.Parameter(adapter[-1].weight.new_zeros(self.width))  # type: ignore[operator]
        encoder.backbone.requires_grad_(train != "frozen")
        if train == "lora":
            add_lora(encoder.backbone.model, **self.lora)
        self.plan: Plan | None = None
        self.chunk_tokens, self.backbone, self.bf16 = chunk_tokens, backbone, False
        self.ranks, self.sharded = ALONE, False
        self.backward_by: Callable[[Tensor, Tensor, bool], None] | None = None
        self._lengths: tuple[int, Tensor] = (-1, torch.zeros(0))

    text_ids: Tensor
    text_offsets: Tensor
    ranks: Ranks

    @property
    def n_items(self) -> int:
        return self.text_offsets.shape[0] - 2

    @property
    def device(self) -> torch.device:
        return self.text_ids.device

    @property
    def texts(self) -> Ragged:
        return Ragged(self.text_ids, self.text_offsets)

    def lengths(self) -> Tensor:
        """Text tokens int64 (n_items + 1,) of every token's text, on the CPU; 0 = no text."""
        version = self.text_offsets._version
        if self._lengths[0] != version or len(self._lengths[1]) != self.n_items + 1:
            self._lengths = version, self.texts.lengths.cpu()
        return self._lengths[1]

    def train(self, mode: bool = True) -> LiveText:
        """Switch dropout; a frozen item LLM never drops anything."""
        super().train(mode)
        if self.train_what == "frozen":
            self.encoder.backbone.eval()
        return self

    def encode(self, tokens: Tensor) -> Tensor:
        """Vectors (n, width) of `tokens` int64 (n,), with gradient: one plain graph."""
        host, (rows, places, order) = tokens.cpu(), self._chunks(tokens, self.chunk_tokens)
        if not rows:
            return self._without_text(len(host))
        vectors = torch.cat([self._run(part) for part in rows])
        return self._place(vectors, order, places, len(host))

    def lease(self, tokens: Tensor) -> Lease:
        """The vectors of distinct `tokens` int64 (M,) for one step. Raises DeviceError where one text alone
        is too much for the device's memory."""
        if not torch.is_grad_enabled() or not any(p.requires_grad for p in self.parameters()):
            with torch.no_grad():
                return Lease(_wide(self.encode(tokens)))
        shares = self._shares(tokens)
        mine = shares[self.ranks.rank]
        plan = self.plan or self._first_plan(tokens[mine.to(tokens.device)])
        start = random_state(self.device)
        while True:
            try:
                chunks, order = self._encoded(tokens[mine.to(tokens.device)], tokens, plan)
                self.plan = plan
                break
            except Exception as err:
                # Where weights are spread over ranks, the others wait inside this pass: there is no second try.
                if self.sharded or not hardware.is_out_of_memory(err):
                    raise
                plan = self._after_overflow(plan, err)
            hardware.release_memory()
            set_random_state(self.device, start)
        return self._lent(tokens, shares, chunks, order)

    def _shares(self, tokens: Tensor) -> list[Tensor]:
        """Places int64 (on the CPU) of the texts among `tokens` that each rank encodes, about as long in all."""
        lengths = self.lengths()[tokens.cpu()]
        places = lengths.nonzero().flatten()
        if not self.ranks.many:
            return [places]
        places = places[torch.argsort(lengths[places], stable=True)]
        return [places[rank :: self.ranks.world].sort().values for rank in range(self.ranks.world)]

    def _encoded(self, mine: Tensor, tokens: Tensor, plan: Plan) -> tuple[Chunks, Tensor]:
        """This rank's chunks, encoded, and the order of `mine` in them."""
        rows, _, order = self._chunks(mine, plan.chunk_tokens)
        if self.sharded:  # everyone runs as often; a text more, whose vector nobody reads, does no harm
            text = tokens.cpu()[self.lengths()[tokens.cpu()] > 0][:1]
            rows += [text] * (self.ranks.most(len(rows)) - len(rows))
        keep = (
            len(rows) if plan.mode != "cache" else self._kept(rows, 0 if self.sharded else plan.keep_tokens)
        )
        trained = [p for p in self.parameters() if p.requires_grad]
        chunks = Chunks(
            self._run, rows, keep, self.device, trained, self._checkpointing,
            self._shrink, self.backward_by, not self.sharded,
        )  # fmt: skip
        with self._checkpointing() if plan.mode == "checkpoint" else contextlib.nullcontext():
            chunks.forward()
        return chunks, order

    def _lent(self, tokens: Tensor, shares: list[Tensor], chunks: Chunks, order: Tensor) -> Lease:
        """The vectors of all `tokens`, the other ranks' too, and what spends the gradient at those of this rank."""
        ranks, mine = self.ranks, shares[self.ranks.rank].to(self.device)
        wide = torch.promote_types(next(self.encoder.parameters()).dtype, torch.float32)
        own = torch.empty(len(mine), self.width, device=self.device, dtype=wide)
        if len(mine):
            own[order] = chunks.vectors[: len(mine)]
        places = torch.cat(shares).to(self.device)
        vectors = self._without_text(len(tokens)).detach().to(own.dtype)
        vectors = vectors.index_copy(0, places, ranks.gather_rows(own, [len(share) for share in shares]))
        absent = torch.ones(len(tokens), dtype=torch.bool, device=self.device).index_fill(0, places, False)

        def spend(grad: Tensor) -> None:
            # `grad` is the whole batch's. What a rank makes of its share is averaged with the others' later.
            if chunks.rows:
                given = grad.new_zeros(len(chunks.vectors), grad.shape[1])
                given[: len(mine)] = grad[mine[order]] * ranks.world if ranks.many else grad[mine[order]]
                chunks.backward(given)
            if self.adapter is not None and self.no_text.requires_grad:
                here = grad[absent].sum(0).to(self.no_text.dtype)
                self.no_text.grad = here if self.no_text.grad is None else self.no_text.grad + here

        return Lease(_wide(vectors).requires_grad_(), spend)

    def _run(self, tokens: Tensor) -> Tensor:
        """Vectors (n, width) of `tokens` (on the CPU) that have text: one chunk."""
        lengths = self.lengths()[tokens]
        raw = self.encoder(self.texts.take(tokens, lengths), lengths)
        if self.whitening is not None:
            white = (raw.double() - self.whitening.mean) @ self.whitening.basis
            raw = white.to(raw.dtype)
        if self.adapter is None:
            return _wide(raw)
        if not torch.is_autocast_enabled(raw.device.type):
            raw = raw.to(self.adapter[0].weight.dtype)
        return _wide(self.adapter(raw))

    def _without_text(self, n: int) -> Tensor:
        """Vectors (n, width) of items without text."""
        if self.adapter is None:
            return torch.zeros(n, self.width, device=self.device)
        return _wide(self.no_text).expand(n, -1)

    def _chunks(self, tokens: Tensor, budget: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Tokens of each chunk (CPU), where the items with text stand among `tokens`, and the chunks' order of
        those (both on the device)."""
        host = tokens.cpu()
        places = self.lengths()[host].nonzero().flatten()
        costs = self.encoder.text_tokens(self.lengths()[host[places]])
        parts = plan_chunks(costs, budget)
        order = torch.cat(parts) if parts else places
        return [host[places[part]] for part in parts], places.to(self.device), order.to(self.device)

    def _place(self, vectors: Tensor, order: Tensor, places: Tensor, n: int) -> Tensor:
        """Chunks' vectors back in the order of the tokens, items without text among them."""
        base = self._without_text(n).to(vectors.dtype)
        return base.index_copy(0, places[order], vectors)

    def _kept(self, rows: list[Tensor], room: int) -> int:
        """How many of the last chunks keep their graphs within `room` tokens."""
        kept = 0
        for part in reversed(rows):
            room -= int(self.encoder.text_tokens(self.lengths()[part]).sum())
            if room < 0:
                break
            kept += 1
        return kept

    def _first_plan(self, tokens: Tensor) -> Plan:
        total = int(self.encoder.text_tokens(self.lengths()[tokens.cpu()]).sum())
        if self.mode != "auto":
            return Plan(self.mode, self.chunk_tokens, total if self.mode == "graph" else 0)
        model: Any = self.encoder.backbone.model
        layers = max(1, int(getattr(model.config, "num_hidden_layers", 1)))
        inputs = layers * self.encoder.dim * next(model.parameters()).element_size()
        if self.sharded:  # all ranks decide alike, without a trial
            return Plan("cache", self.chunk_tokens, 0)
        sample = self._chunks(tokens, SAMPLE_TOKENS)[0]
        if not sample:
            return Plan("graph", self.chunk_tokens, 0)
        per_token = self._bytes_per_token(sample[-1])
        trained = [p for p in self.parameters() if p.requires_grad and p.grad is None]
        # Gradients are not there yet, nor are the two moments of AdamW.
        room = free_memory(self.device) - sum(p.numel() * (p.element_size() + 8) for p in trained)
        checkpointed = inputs if self._can_checkpoint() else None
        room = max(0.0, MEMORY_SHARE * room)
        plan = choose_plan(total, per_token, checkpointed, layers, room, self.chunk_tokens)
        log.info("item LLM: %s for %d tokens, %.0f kB each", plan, total, per_token / 1e3)
        return plan

    def _bytes_per_token(self, sample: Tensor) -> float:
        """What a text token's graph keeps, from graphs of two sizes: casts of the weights are no token's."""
        state, sizes = random_state(self.device), []
        for part in (sample, sample[: len(sample) // 2]):
            found = [0]
            if len(part):
                with torch.enable_grad(), counting_saved(found, self.parameters()):
                    self._run(part)
            sizes.append((int(self.encoder.text_tokens(self.lengths()[part]).sum()), found[-1]))
        set_random_state(self.device, state)
        (n, whole), (half_n, half) = sizes
        return max(1.0, (whole - half) / (n - half_n))

    def _shrink(self, err: Exception) -> None:
        assert self.plan is not None
        self.plan = self._after_overflow(self.plan, err)

    def _after_overflow(self, plan: Plan, err: Exception) -> Plan:
        """A smaller plan, said; DeviceError if there is none."""
        if plan.mode == "cache" and not plan.keep_tokens and plan.chunk_tokens <= int(self.lengths().max()):
            raise DeviceError(
                f"{self.device} has too little memory to train the item LLM on one text of "
                f"{int(self.lengths().max())} tokens; use items.train=lora, a smaller item LLM, or fewer max_tokens"
            ) from err
        smaller = plan.smaller(self._can_checkpoint())
        why = "out of memory" if hardware.is_out_of_memory(err) else "layers cannot be checkpointed"
        log.warning("%s: item LLM goes on with %s after %s", why, smaller, plan)
        return smaller

    def _can_checkpoint(self) -> bool:
        return self.encoder.backbone.can_checkpoint()

    def _checkpointing(self) -> contextlib.AbstractContextManager[None]:
        return self.encoder.backbone.checkpointing() if self._can_checkpoint() else contextlib.nullcontext()

    @torch.no_grad()
    def tiles(self) -> Iterator[Tensor]:
        """Vectors of every token from 0 on, in order, (m, width) at a time, without gradient or dropout."""
        yield from self.settled().tiles()

    def table(self) -> Tensor:
        """Vectors (n_items + 1, width) of every token, each text run once, without gradient or dropout."""
        return torch.cat(list(self.tiles()))

    @torch.no_grad()
    def settled(self) -> TextTable:
        """The frozen source of today's vectors: what ranking reads, and what a finished run keeps."""
        raw, has_text = self.raw_table(), (self.lengths() > 0).to(self.device)
        rows = raw if self.whitening is None else self.whitening.transform(raw, has_text)
        table = TextTable(rows, has_text, self.whitening)
        if self.adapter is not None:
            table.adapter, table.no_text, table.width = self.adapter, self.no_text, self.width
        return table

    @torch.no_grad()
    def raw_table(self) -> Tensor:
        """Pooled vectors (n_items + 1, dim) before whitening; zero for items without text."""
        training, budget = self.training, NO_GRAD_CHUNKS * self.chunk_tokens
        self.eval()
        try:
            while True:
                out: Tensor | None = None
                try:
                    out = self._pooled(budget)
                except Exception as err:
                    small = budget <= int(self.lengths().max())
                    if self.sharded or small or not hardware.is_out_of_memory(err):
                        raise
                if not self.ranks.most(int(out is None)):
                    assert out is not None
                    self.ranks.average([out])  # zeros where others have been at work
                    return out * self.ranks.world if self.ranks.many else out
                budget //= 2
                log.warning("out of memory: the catalogue is encoded in chunks of %d tokens", budget)
                hardware.release_memory()
        finally:
            self.train(training)

    def _pooled(self, budget: int) -> Tensor:
        out = torch.zeros(self.n_items + 1, self.encoder.dim, device=self.device)
        everyone = torch.arange(self.n_items + 1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            parts = self._chunks(everyone, budget)[0]
            for first in range(0, len(parts), self.ranks.world):
                # A rank that finds no chunk in the last round runs one of another, where all must run equally often.
                spare = first + self.ranks.rank >= len(parts)
                if spare and not self.sharded:
                    break
                part = parts[0 if spare else first + self.ranks.rank]
                lengths = self.lengths()[part]
                vectors = self.encoder(self.texts.take(part, lengths), lengths)
                if not spare:
                    out = out.to(vectors.dtype).index_copy_(0, part.to(self.device), vectors)
        return out

    def fit_whitening(self, trained: Tensor, mode: str, rank: int, raw: Tensor | None = None) -> Tensor:
        """Fit the whitening on the texts of `trained` bool (n_items + 1,) as the model stands; returns the raw
        table, which may be given. To be called before an adapter is made: the width of its input depends on it."""
        raw = self.raw_table() if raw is None else raw
        rows = trained.cpu() & (self.lengths() > 0)
        self.whitening = Whitening.fit(raw[rows.to(raw.device)].cpu(), mode, rank).to(self.device)
        if self.adapter is None:
            self.width = self.whitening.basis.shape[1]
        return raw

    def extend(self, text: Ragged | Tensor | None, has_text: Tensor) -> None:
        """Append items by their token ids: `text` is Ragged, with an empty row where there is no text."""
        if not isinstance(text, Ragged):
            raise TypeError("a live source is extended by texts (Ragged), not by their vectors")
        grown = self.texts.append(text)
        self.text_ids, self.text_offsets = grown.flat, grown.offsets

    def spec(self) -> dict[str, Any]:
        encoder = self.encoder
        return {
            "kind": "live_text",
            "n_items": self.n_items,
            "n_text_tokens": int(self.text_ids.shape[0]),
            "model": encoder.backbone.model.config.to_dict(),  # type: ignore[union-attr,operator]
            "pooling": encoder.pooling,
            "prefix": encoder.prefix.tolist(),
            "item_token_n": encoder.item_token_n,
            "align_to": encoder.align_to,
            "pad_id": encoder.backbone.pad_id,
            "whitening": None if self.whitening is None else list(self.whitening.basis.shape),
            "width": self.width,
            "hidden": None if self.adapter is None else self.adapter[0].out_features,
            "train": self.train_what,
            "lora": self.lora,
        }


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()

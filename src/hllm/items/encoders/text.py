"""Text in, vectors out, by a language model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from hllm.errors import ArtifactError, DeviceError
from hllm.hardware import is_out_of_memory, release_memory
from hllm.items.config import split_pooling
from hllm.items.encoders.backbones import Backbone, table_rows
from hllm.items.encoders.heads import Keep, tokenise
from hllm.items.encoders.own import OwnWay
from hllm.items.encoders.pooling import pool
from hllm.items.encoders.prefix import SharedPrefix, common_prefix, share_prefix
from hllm.items.encoders.tokens import token_ids
from hllm.text.template import Marked


@dataclass(frozen=True)
class Tokens:
    """Token ids int64 (t,) of n texts end to end (`flat`), their `offsets` int64 (n + 1,), which were `truncated` bool
    (n,), the ids that occur (`known`, bool), and how many tokens all of them begin with (`prefix`)."""

    flat: np.ndarray
    offsets: np.ndarray
    truncated: np.ndarray
    known: np.ndarray
    prefix: int


_SAME_PLACE = "take both from the same place"


class LanguageModelEncoder:
    """Pooled states of a causal, encoder or encoder-decoder model (see `hllm.items.config.check_pooling`).

    Texts are padded on the right by hidden, existing ids, whatever side or token the tokenizer
    prefers; the pooled vector does not depend on it. `max_tokens` counts tokens beside the prompt.
    Truncation cuts the end of the text and keeps the special tokens that the tokenizer adds after it.
    With `own`, pooling "auto", vectors are made as it says.
    """

    budget: int | None = None

    def __init__(
        self,
        backbone: Backbone,
        pooling: str,
        prompt: str = "",
        max_tokens: int = 256,
        own: OwnWay | None = None,
    ) -> None:
        how, layers = split_pooling(pooling)
        self.own, self.poolings = own, own.poolings if own else (how,)
        self.backbone = replace(backbone, layers=layers)
        self.dim = own.dim(backbone.dim) if own else backbone.dim
        self.truncated = np.zeros(0, dtype=bool)
        self.before = own.prompt if own and not prompt else ""  # the texts hold `prompt`, not this
        prompt_length = len(token_ids(backbone, [prompt + self.before])[0])
        limits = [backbone.max_length, prompt_length + max_tokens]
        self.max_length = min([*limits, own.max_length] if own and own.max_length else limits)
        # As sentence-transformers counts them: what the tokenizer puts after the prompt is not of it.
        self.unpooled = prompt_length - 1 if own and not own.pools_prompt and prompt + self.before else 0
        if prompt and prompt_length >= self.max_length:
            warnings.warn(
                f"the prompt's {prompt_length} tokens fill all {self.max_length} that {backbone.name} reads: "
                'items will look alike; use a shorter prompt, or none (--prompt "")',
                stacklevel=2,
            )
        self.prefix: SharedPrefix | None = None
        self.keep: Keep | None = None  # what is taken of fields before a text is cut
        self.computed = self.padding = 0  # positions that the model ran, and how many of these were padding
        self.ahead = backbone.device.type == "cuda"  # a batch may begin before the one before it is fetched
        self.most = sys.maxsize  # positions of a forward, where memory did not hold more

    def prepare(self, texts: list[str]) -> np.ndarray:
        """Tokenise `texts`, and find the tokens that they begin with; returns their lengths int64 (n,).

        Raises ArtifactError where the tokenizer is not the model's, or has no vocabulary.
        """
        tokens = self.tokenise(texts)
        self._check_words(tokens.known, len(texts))
        return self.take(tokens)

    def tokenise(self, texts: list[str]) -> Tokens:
        """Tokens of `texts`: of whole ones, so that no boundary depends on the prompt, cut to what the model reads."""
        if self.own:
            texts = [text.lower() if self.own.lower else text for text in texts]
        if self.before:
            texts = [
                text.after(self.before) if isinstance(text, Marked) else self.before + text for text in texts
            ]
        sequences, truncated = tokenise(self.backbone, texts, self.max_length, self.keep)
        lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
        offsets = np.concatenate(([0], lengths.cumsum()))
        flat = np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=int(lengths.sum()))
        return Tokens(flat, offsets, truncated, np.bincount(flat) > 0, common_prefix(flat, offsets))

    def take(self, tokens: Tokens) -> np.ndarray:
        """Make `tokens` those that `encode` reads; returns the texts' lengths int64 (n,).

        Raises ArtifactError for ids that the model has no embedding for.
        """
        rows = table_rows(self.backbone.model)
        if rows is not None and len(tokens.known) > rows:
            raise ArtifactError(
                f"the tokenizer of {self.backbone.name} gives token id {len(tokens.known) - 1}, its model knows only "
                f"{rows:,} (0 to {rows - 1:,}): they do not belong together; {_SAME_PLACE}"
            )
        self.flat, self.offsets, self.truncated = tokens.flat, tokens.offsets, tokens.truncated
        self._share_prefix(tokens.prefix)
        return np.diff(tokens.offsets)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Vectors float32 (m, dim) of the prepared texts `rows` int64 (m,): see `start`."""
        return self.start(rows)()

    @torch.inference_mode()
    def start(self, rows: np.ndarray) -> Callable[[], np.ndarray]:
        """Begin one forward for `rows`; where memory does not hold it, two of their halves, from then on too.

        Returns what waits for the vectors. DeviceError if the device's memory does not hold even one text.
        """
        size = self._size(rows)
        if size > self.most and len(rows) > 1:
            return self._halves(rows)
        longest = int((self.offsets[rows + 1] - self.offsets[rows]).max())
        tokens = f"{len(rows)} texts of {longest} tokens"
        try:
            vectors = self._pooled(rows)
            vectors = (self.own.finish(vectors) if self.own else vectors).float()
            return fetched(vectors)
        except (RuntimeError, MemoryError, IndexError, ValueError) as err:
            if not is_out_of_memory(err):
                reason = " ".join(str(err).split())[:200]
                raise ArtifactError(
                    f"{self.backbone.name} fails on {tokens}: {reason}; try a smaller --max-tokens"
                ) from err
            if len(rows) == 1:
                raise DeviceError(
                    f"{self.backbone.device} has too little memory for {tokens}; use a smaller --max-tokens, "
                    "--quantize 8bit or --device cpu"
                ) from err
        self.most = size // 2
        release_memory()  # the error, which holds the forward's tensors, is gone by now
        return self._halves(rows)

    def _halves(self, rows: np.ndarray) -> Callable[[], np.ndarray]:
        parts = [self.start(half) for half in np.array_split(rows, 2)]
        return lambda: np.concatenate([part() for part in parts])

    def _size(self, rows: np.ndarray) -> int:
        """Positions of a forward of `rows`."""
        return len(rows) * int((self.offsets[rows + 1] - self.offsets[rows]).max())

    def _check_words(self, known: np.ndarray, n_texts: int) -> None:
        """ArtifactError for `n_texts` of unknown tokens alone; `known` bool (ids,) says which ids are there."""
        tokenizer, known = self.backbone.tokenizer, known.copy()
        unknown = tokenizer.unk_token_id
        some_unknown = unknown is not None and unknown < len(known) and bool(known[unknown])
        for i in {unknown, self.backbone.pad_id, *tokenizer.all_special_ids} - {None}:
            known[i : i + 1] = False
        # Without its vocabulary file a tokenizer is made that knows special tokens, at most the space too.
        if n_texts > 1 and known.sum() <= some_unknown:
            raise ArtifactError(
                f"the tokenizer of {self.backbone.name} knows no word of these {n_texts:,} texts: its "
                f"vocabulary file is missing or another model's; {_SAME_PLACE}"
            )

    @torch.inference_mode()
    def _share_prefix(self, n_tokens: int) -> None:
        """Run the first `n_tokens` of the texts, which are the same in all, once."""
        lengths = np.diff(self.offsets)
        ends = np.array([lengths.argmin(), lengths.argmax()])  # two lengths, so that padding is tried too
        self.prefix = share_prefix(self.backbone, *self._padded(ends, 0), n_tokens)

    def _pooled(self, rows: np.ndarray) -> Tensor:
        """Pooled vectors float32 (m, d) of `rows`."""
        ids, mask = self._padded(rows, self.prefix.n_tokens if self.prefix else 0)
        if self.prefix is not None:
            hidden, mask = self.prefix.hidden(ids, mask)
        else:
            hidden = self.backbone.states(self.backbone.hidden(ids, mask))
        skip = {how: 0 if how == "cls" else self.unpooled for how in self.poolings}
        parts = [pool(hidden[:, skip[how] :], mask[:, skip[how] :], how) for how in self.poolings]
        return torch.cat(parts, dim=1)

    def _padded(self, rows: np.ndarray, skip: int) -> tuple[Tensor, Tensor]:
        """Ids and mask int64 (m, longest) of `rows` less their first `skip` tokens, padded on the right."""
        starts, ends = self.offsets[rows] + skip, self.offsets[rows + 1]
        width = int((ends - starts).max())
        index = starts[:, None] + np.arange(width)
        mask = index < ends[:, None]
        self.computed, self.padding = self.computed + mask.size, self.padding + int(mask.size - mask.sum())
        ids = np.where(mask, self.flat[np.where(mask, index, 0)], self.backbone.pad_id)
        device = self.backbone.device
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)


def fetched(vectors: Tensor) -> Callable[[], np.ndarray]:
    """What waits for `vectors` on the host; a GPU goes on with other work meanwhile."""
    if vectors.device.type != "cuda":
        return lambda: vectors.cpu().numpy()
    host, done = vectors.to("cpu", non_blocking=True), torch.cuda.Event()
    done.record()

    def wait() -> np.ndarray:
        done.synchronize()
        return host.numpy().copy()  # page-locked memory goes back

    return wait

"""Settings of the item vectors."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from hllm.errors import ConfigError, unknown
from hllm.settings import Settings

POOLINGS = ("mean", "last", "cls", "weighted-mean", "item-token", "auto")
_POOLING = re.compile(r"(mean|last|cls|weighted-mean)(?:@(-?\d{1,4}|last[1-9]\d{0,3}))?|item-token|auto")


def check_pooling(name: str) -> str:
    """`name`, or ConfigError if it is no pooling: one of POOLINGS, all but the last two also of other layers
    than the last ("mean@6": after block 6, "mean@-2": the last but one, "mean@last4": the mean of four)."""
    if not isinstance(name, str) or not _POOLING.fullmatch(name):
        raise ConfigError(unknown("pooling", name, (*POOLINGS, "mean@6 (after block 6)", "mean@last4")))
    return name


def split_pooling(name: str) -> tuple[str, str]:
    """How tokens are pooled, and of which layers: ("mean", "last4") of "mean@last4", ("mean", "") of "mean"."""
    how, _, layers = check_pooling(name).partition("@")
    return how, layers


class ItemsConfig(Settings):
    """Where item vectors come from.

    `item_llm` is a short name, a hub name, a folder, "tfidf", "random", the key of a store (with `fusion` one for
    each field, "KEY+KEY"), or None for a model without text. `train` says what of it is trained with the user
    model: nothing (its vectors are read from the store), low-rank additions to its weights, or all of it.
    """

    item_llm: str | None = "smollm2-135m"
    pooling: Annotated[str, AfterValidator(check_pooling)] = "mean"
    prompt: str | None = None  # None: the official prompt of text/template.py
    text_fields: list[str] | None = None  # None: every text column, in the table's order
    fusion: str = "together"  # or mean, mean:3,1, learned, concat: fields apart, their vectors put together
    whiten: Literal["whiten", "center", "none"] = "whiten"
    whiten_rank: int = Field(default=256, ge=1, le=2**16)
    # Width of the adapter's hidden layer; None: no adapter, text vectors are item vectors.
    adapter_hidden: int | None = Field(default=512, ge=1, le=2**20)
    id_embedding: bool = True
    train: Literal["frozen", "lora", "full"] = "frozen"
    item_llm_init: Literal["pretrained", "scratch"] = "pretrained"  # scratch: its shape alone
    # Learned tokens appended to every text, whose states are the vector (ByteDance's [ITEM]); 0: pooling.
    item_emb_token_n: int = Field(default=0, ge=0, le=64)
    right_aligned: bool = False  # position ids end at the longest text's, as ByteDance's do
    max_tokens: int = Field(default=256, ge=1, le=2**20)  # of a text, beside the prompt
    lora_rank: int = Field(default=16, ge=1, le=2**16)
    lora_alpha: int = Field(default=32, ge=1, le=2**20)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def live(self) -> bool:
        """Whether each training step runs the item LLM."""
        return self.train != "frozen" or self.item_emb_token_n > 0

    @model_validator(mode="after")
    def _some_vector(self) -> Self:
        if self.adapter_hidden is None and (self.item_llm is None or self.id_embedding):
            raise ConfigError(
                f"adapter_hidden=null uses text vectors alone as item vectors; it needs an item_llm "
                f"(item_llm={self.item_llm}) and id_embedding=false"
            )
        if self.item_llm is None and not self.id_embedding:
            raise ConfigError(
                "item_llm=None with id_embedding=False leaves items without any vector; set one of them"
            )
        if self.train == "lora" and self.item_llm_init == "scratch":
            raise ConfigError(
                "train=lora adds to pretrained weights, which item_llm_init=scratch has none of; use train=full"
            )
        return self

    def without_effect(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.item_llm is None:
            no_text = "item_llm is null, so there is no text to "
            verbs = {
                "pooling": "pool",
                "prompt": "prompt for",
                "text_fields": "choose fields of",
                "fusion": "put together",
                "whiten": "whiten",
                "whiten_rank": "whiten",
                "adapter_hidden": "adapt",
            }
            no_model = dict.fromkeys(_LIVE, "item_llm is null, so there is no item LLM to train")
            return {name: no_text + verb for name, verb in verbs.items()} | no_model
        # The controls `tfidf` and `random` do not pool either, but stand in for a language model in the
        # same command, so `pooling` and `prompt` beside them are let pass.
        if all(map(is_store_key, keys := self.item_llm.split("+"))):
            what = "is the key of a store, which says" if len(keys) == 1 else "are keys of stores, which say"
            reason = f"item_llm={self.item_llm} {what} it already"
            found |= dict.fromkeys(("pooling", "prompt", "text_fields"), reason)
            if len(keys) == 1:
                found["fusion"] = reason
            found |= dict.fromkeys(_LIVE, f"{reason}; to train its model, name that")
        elif self.item_llm in CONTROLS or self.item_llm.startswith("vectors:"):
            found |= dict.fromkeys(_LIVE, f"item_llm={self.item_llm} is no language model")
        elif self.live:
            found["fusion"] = "a trained item LLM reads all fields in one text"
        else:
            reason = (
                "the item LLM is frozen and its vectors are read from the store; train=full or lora runs it"
            )
            found |= dict.fromkeys(("item_llm_init", "right_aligned", "max_tokens"), reason)
        if self.item_emb_token_n:
            found.setdefault("pooling", "item_emb_token_n reads its learned tokens; 0 pools the text's")
        if self.train != "lora":
            for name in ("lora_rank", "lora_alpha", "lora_dropout"):
                found.setdefault(name, f"train={self.train} has no low-rank adapters; train=lora does")
        if self.whiten != "whiten":
            found["whiten_rank"] = f"whiten={self.whiten} keeps every dimension; a rank needs whiten=whiten"
        return found


CONTROLS = ("tfidf", "random")  # stand in for a language model; nothing in them can be trained
_LIVE = (
    "train", "item_llm_init", "item_emb_token_n", "right_aligned", "max_tokens",
    "lora_rank", "lora_alpha", "lora_dropout",
)  # fmt: skip


def is_store_key(name: str) -> bool:
    """Whether `name` is a store's key rather than a model's name."""
    return re.fullmatch(r"[0-9a-f]{16}", name) is not None

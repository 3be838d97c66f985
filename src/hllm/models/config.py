"""Settings of the user model and of the scorer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hllm.errors import ConfigError
from hllm.settings import Settings, heads_of


class UsersConfig(Settings):
    """The user model. "gated" is models/gated.py's, "rechub" torch-rechub's, "llm" any transformers decoder.

    `user_llm`: a short name, hub name or folder; None: a llama of `d_model`, `n_layers`, `n_heads`, `ffn_hidden`.
    """

    OFF: ClassVar[dict[str, Any]] = {"mask_prob": 0.0}

    user_model: Literal["gated", "rechub", "llm"] = "gated"
    user_llm: str | None = None
    user_llm_init: Literal["pretrained", "scratch"] = "pretrained"  # scratch: the shape of user_llm alone
    # None, and only without adapter: the text vectors' width.
    d_model: int | None = Field(default=256, ge=1, le=2**16)
    n_layers: int = Field(default=6, ge=1, le=1024)
    # None: torch-rechub's rule, 4, from width 512 on 8, from 2048 on 16.
    n_heads: int | None = Field(default=4, ge=1, le=1024)
    ffn_hidden: int | None = Field(default=None, ge=1, le=2**20)  # None: 8/3 of d_model, a multiple of 32
    dropout: float = Field(default=0.5, ge=0, lt=1)
    max_distance: int = Field(default=256, ge=1, le=2**20)  # relative positions further back share one bias
    mask_prob: float = Field(default=0.1, ge=0, lt=1)  # input items replaced by a learned mask vector
    time_embedding: Literal["none", "window_end", "previous"] = "none"  # user_model="rechub" only
    num_time_buckets: int = Field(default=2048, ge=2, le=2**24)
    time_bucket_fn: Literal["sqrt", "log"] = "sqrt"

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.d_model is not None and not (self.user_model == "llm" and self.user_llm):
            heads_of(self.d_model, self.n_heads)
        return self

    def without_effect(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.user_model == "rechub":
            found["mask_prob"] = "user_model=rechub masks no inputs"
            found["ffn_hidden"] = "user_model=rechub's feed-forward layer is 4 times d_model wide"
            found["max_distance"] = "user_model=rechub spreads its distances over max_len"
        elif self.user_model == "llm":
            found |= {name: f"user_model=llm {why}" for name, why in _LLM.items()}
            if self.user_llm is None:
                found["user_llm_init"] = "user_llm is null, so there are no pretrained weights"
            else:
                reason = f"user_llm={self.user_llm} has a shape of its own"
                found |= dict.fromkeys(("n_layers", "n_heads", "ffn_hidden"), reason)
        if self.user_model != "llm":
            found |= dict.fromkeys(("user_llm", "user_llm_init"), "it needs user_model=llm")
        if self.user_model != "rechub":
            found["time_embedding"] = f"user_model={self.user_model} reads no times; user_model=rechub does"
        if "time_embedding" in found or self.time_embedding == "none":
            reason = found.get("time_embedding", "time_embedding is none, so there are no time buckets")
            found |= dict.fromkeys(("num_time_buckets", "time_bucket_fn"), reason)
        return found


_LLM = {
    "mask_prob": "masks no inputs",
    "max_distance": "has its own positions",
    "dropout": "has the dropout of its own configuration",
}


class ScorerConfig(Settings):
    """From hidden states and item vectors to scores."""

    OFF: ClassVar[dict[str, Any]] = {"learn_temperature": False}

    scorer: Literal["cosine", "dot"] = "cosine"
    temperature: float = Field(default=0.07, ge=1e-4, le=1e4)  # start value where it is learned
    learn_temperature: bool = True

    @model_validator(mode="after")
    def _start(self) -> Self:
        if self.scorer == "cosine" and self.learn_temperature and self.temperature > 1:
            raise ConfigError(
                f"temperature={self.temperature:g} cannot be learned: a learned one stays between .01 and 1; "
                "set learn_temperature=false"
            )
        return self

    def without_effect(self) -> dict[str, str]:
        if self.scorer == "dot":
            return {"learn_temperature": "scorer=dot has a fixed temperature; scorer=cosine can learn it"}
        return {}

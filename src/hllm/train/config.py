"""Settings of training, and of how its steps are run on a machine."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hllm.errors import ConfigError
from hllm.settings import INT_MAX, Settings, shown

STRATEGIES = ("ddp", "fsdp", "zero1", "zero2", "zero3")  # how ranks share a training (train/parallel.py)
METRIC = re.compile(r"(hr|recall|ndcg|mrr)@[1-9]\d{0,5}")
Epochs = Annotated[int, Field(ge=1, le=10**6)]


class TrainingConfig(Settings):
    """Batches, optimiser and validation.

    `windows`: "random", one window per user and epoch; "pieces", ByteDance's cut, without overlap;
    "every", whole histories in pieces, every event but a user's first a target once an epoch.
    """

    # Events of a history that the model sees. 200 is usual; more pay on validation wherever histories are longer.
    max_len: int | Literal["all"] = 800
    windows: Literal["random", "pieces", "every"] = "random"
    # How often an epoch goes over the data, each time in other windows.
    passes: int = Field(default=1, ge=1, le=10_000)
    # adam: weight_decay is an L2 penalty on every weight; adamw8bit: moments in 8 bits, by bitsandbytes.
    optimizer: Literal["adamw", "adam", "adamw8bit"] = "adamw"
    # Epochs at most, targets of a batch: None: chosen by the data set's size (runs/settle.py).
    epochs: Epochs | None = None
    batch_tokens: int | None = Field(default=None, ge=1, le=INT_MAX)
    learning_rate: float = Field(default=2e-3, gt=0, le=1e3)
    weight_decay: float = Field(default=0.15, ge=0, le=1e3)
    # Of the item LLM (its adapters and item tokens too) and of the user model, where they differ.
    item_llm_learning_rate: float | None = Field(default=None, gt=0, le=1e3)
    item_llm_weight_decay: float | None = Field(default=None, ge=0, le=1e3)
    user_learning_rate: float | None = Field(default=None, gt=0, le=1e3)
    user_weight_decay: float | None = Field(default=None, ge=0, le=1e3)
    init_from: str | None = None  # a run of the same dataset, whose weights training starts from
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    # What a cosine ends at. 1: the rate stays, and averaged weights do what its fall would, at every epoch alike, so
    # that patience may end a training wherever it is done.
    min_lr_ratio: float = Field(default=1.0, ge=0, le=1)
    grad_clip: float | None = Field(default=1.0, gt=0)  # None: gradients are not clipped
    ema_decay: float = Field(default=0.999, ge=0, lt=1)  # 0: no weight averaging
    # Validations without a better valid_metric, before training ends. None: chosen with `epochs` where these are
    # open too, else training goes on to its last epoch.
    patience: Epochs | None = None
    valid_metric: str = "ndcg@10"
    eval_every: Epochs = 1  # epochs between validations; the last epoch is always validated
    # Users ranked in a validation while training, a sample by the seed. None: everyone, unless users x
    # candidates go beyond 10^10 scores.
    valid_users: int | None = Field(default=None, ge=1, le=INT_MAX)
    # ID rows: every row every step, or a row when it is needed (adamw only). None: chosen by the catalogue's size.
    id_updates: Literal["dense", "lazy"] | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if self.max_len != "all" and not 1 <= self.max_len < 2**31:
            raise ConfigError(
                f"setting max_len={shown(self.max_len)}: must be a number of events from 1, or 'all'"
            )
        if not METRIC.fullmatch(self.valid_metric):
            raise ConfigError(
                f"setting valid_metric={shown(self.valid_metric)}: must be hr, recall, ndcg or mrr at a number, for "
                "example ndcg@10"
            )
        return self


class Runtime(Settings):
    """How steps are run on this machine. No part of a run's identity: another machine may go on with it."""

    # Of matrix products in training. auto: by bf16 operands where the processor or GPU has instructions for them.
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    capture: bool = True  # on a GPU, replay the step as a CUDA graph
    # How a trained item LLM's gradients are computed: by free memory, or one of items/source/caching.py's ways.
    item_gradients: Literal["auto", "graph", "checkpoint", "cache"] = "auto"
    item_chunk_tokens: int = Field(default=16_384, ge=1, le=INT_MAX)  # text tokens run at once, at most
    kernels: bool = True  # on an NVIDIA GPU, attention and loss of captured steps by kernels of our own
    # Compile the user model's blocks for captured steps. auto: where the training is long enough to pay for it.
    compile: Literal["auto"] | bool = "auto"
    # How several processes share a training.
    strategy: Literal["ddp", "fsdp", "zero1", "zero2", "zero3"] = "ddp"
    deepspeed: str | None = None  # a DeepSpeed configuration file to use with zero1 to zero3
    checkpoint_share: float = Field(
        default=0.02, gt=0, le=1
    )  # of the time at most, spent on writing checkpoints


def chosen(value: int | None) -> int:
    """A setting that `runs.settle.settled` has filled in, where it was open."""
    if value is None:
        raise ValueError("a setting is open that the data decides: settle the configuration first")
    return value

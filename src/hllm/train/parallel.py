"""One training over several ranks: what each holds, and how gradients come together.

    ddp       every rank holds all weights and optimiser state
    fsdp      the layers of trained language models are spread over the ranks (torch's FSDP2), gathered as they are run
    zero1-3   DeepSpeed's ZeRO (Rajbhandari et al., 2020) on the same models: optimiser state is spread, with zero2
              gradients too, with zero3 weights as well

A rank takes a part of every planned batch (`packing.part_of`), and multiplies its loss by the number of ranks; every
gradient is then the mean over the ranks: of the item vectors after the user half, of the weights at the end of the
step. Reducing once a step, rather than while it runs, is what the phases of a step ask for (train/step.py): an item
LLM runs forward and backward in chunks. What is not a language model, and id vectors, are on every rank.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hllm.errors import ConfigError
from hllm.items.source.ids import Ids
from hllm.items.source.live import LiveText
from hllm.items.source.text_table import TextTable
from hllm.models.llm import LLMUserModel
from hllm.ranks import ALONE, Ranks
from hllm.train.config import STRATEGIES, Runtime, TrainingConfig
from hllm.train.optim import is_spread

__all__ = ["STRATEGIES", "Parallel", "spread_layers"]
OURS = (
    "optimizer",
    "scheduler",
    "gradient_clipping",
    "train_batch_size",
)  # of a DeepSpeed file: settings say it


class Parallel:
    """How the ranks of a training work together; `ALONE` and "ddp" for a single process.

    strategy  one of STRATEGIES
    sharded   whether a rank holds a part of some weights or of the optimiser's state
    """

    def __init__(self, ranks: Ranks = ALONE, strategy: str = "ddp") -> None:
        self.ranks, self.strategy = ranks, strategy
        self.sharded = strategy != "ddp"
        self.engine: Any = None  # DeepSpeed's, once `train.zero` has made it
        self._averaged: list[nn.Parameter] | None = None
        self._fresh = True
        self._live = False  # an item LLM's backward pass ends the step

    def take_in(self, network: nn.Module) -> None:
        """Tell the live parts of `network` whom they share their work with."""
        for part in network.modules():
            if isinstance(part, LiveText):
                self._live |= any(p.requires_grad for p in part.encoder.parameters())
                part.ranks, part.sharded = self.ranks, self.sharded
                part.backward_by = self._backward_through if self.engine is not None else None

    def average_gradients(self, network: nn.Module) -> None:
        """Replace gradients by their mean over the ranks, save those that are equal or reduced already."""
        if not self.ranks.many:
            return
        if self._averaged is None:
            self._averaged = self._to_average(network)
        for p in self._averaged:
            if p.grad is None:  # this rank had no text to encode
                p.grad = torch.zeros_like(p)
        self.ranks.average([p.grad for p in self._averaged if p.grad is not None])

    def _to_average(self, network: nn.Module) -> list[nn.Parameter]:
        """Trained parameters whose gradient a rank has in part, in the order of their names. Asked of all ranks."""
        # The same on every rank: their gradient is made of the item vectors', which is averaged before.
        equal = {
            id(p) for m in network.modules() if isinstance(m, Ids | TextTable) for p in m.parameters(False)
        }
        equal |= {id(p) for m in network.modules() if isinstance(m, TextTable) for p in m.parameters()}
        engine = () if self.engine is None else self.engine.module.parameters()
        equal |= {id(p) for p in engine}
        some = {
            name: p.grad is not None
            for name, p in network.named_parameters()
            if p.requires_grad and id(p) not in equal and not is_spread(p)
        }
        used = {name for there in self.ranks.gather(some) for name, has in there.items() if has}
        parameters = dict(network.named_parameters())
        return [parameters[name] for name in some if name in used]

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()` of the user half."""
        loss = loss * self.ranks.world if self.ranks.many else loss
        if self.engine is None:
            loss.backward()
            return
        self._by_engine(loss, True, self._live)
        self._fresh = True  # no chunk of the item LLM has gone back yet

    def _backward_through(self, vectors: Tensor, grad: Tensor, more: bool) -> None:
        self._by_engine((vectors * grad).sum(), self._fresh, more)
        self._fresh = False

    def _by_engine(self, loss: Tensor, first: bool, more: bool) -> None:
        """One of a step's backward passes: the `first` of a model, whose gradients the next add to; `more` follow."""
        self.engine.optimizer.clear_backward_seen_flag()  # what its own forward pass would do
        if first and hasattr(self.engine.optimizer, "micro_step_id"):
            self.engine.optimizer.micro_step_id = 0
        self.engine.set_gradient_accumulation_boundary(not more)
        self.engine.backward(loss)

    def described(self, training: TrainingConfig, runtime: Runtime) -> dict[str, Any]:
        """What is done, as it is written beside the run."""
        found: dict[str, Any] = {"strategy": self.strategy, "processes": self.ranks.world}
        if self.strategy.startswith("zero"):
            found["deepspeed"] = deepspeed_config(self.strategy, training, runtime)
        if self.strategy == "fsdp":
            found["fsdp"] = {
                "version": 2,
                "units": "every layer, the embedding and the rest of each trained language model",
                "reshard_after_forward": True,
                "parameters": "bf16 in the units where training runs in bf16, else float32",
                "reduction": "float32",
            }
        return found


def check_strategy(network: nn.Module, training: TrainingConfig, strategy: str) -> None:
    """Raise ConfigError for a strategy that does not carry this training."""
    if strategy == "ddp":
        return
    if not any(True for _ in language_models(network)):
        raise ConfigError(
            f"strategy={strategy} spreads language models, and this training has none to train; use strategy=ddp"
        )
    if training.ema_decay:
        raise ConfigError(
            f"strategy={strategy} keeps no average of the weights; add --set ema_decay=0, or use strategy=ddp"
        )
    if training.id_updates == "lazy":
        raise ConfigError(f"strategy={strategy} updates every row; add --set id_updates=dense")
    if training.optimizer != "adamw":
        raise ConfigError(f"strategy={strategy} runs optimizer=adamw, not {training.optimizer}")


def language_models(network: nn.Module) -> Iterator[nn.Module]:
    """The parts of `network` that hold a language model to be trained: item encoders and user LLMs."""
    for part in network.modules():
        if isinstance(part, LiveText):
            if any(p.requires_grad for p in part.encoder.parameters()):
                yield part.encoder
        elif isinstance(part, LLMUserModel):
            yield part


def spread_layers(network: nn.Module, ranks: Ranks, device: torch.device, bf16: bool) -> None:
    """Spread the trained language models of `network` over the ranks, in place: FSDP2, a unit a layer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (ranks.world,))
    low, wide = (torch.bfloat16, torch.float32) if bf16 else (None, None)
    inner = MixedPrecisionPolicy(low, wide)
    # Vectors come in and go out as they do elsewhere.
    outer = MixedPrecisionPolicy(low, wide, cast_forward_inputs=False)
    for part in language_models(network):
        model: Any = part.backbone.model  # type: ignore[union-attr]
        for unit in (*layers_of(model), model.get_input_embeddings()):
            fully_shard(unit, mesh=mesh, mp_policy=inner)
        fully_shard(part, mesh=mesh, mp_policy=outer)


def layers_of(model: Any) -> list[nn.Module]:
    """The layers of a transformers model: the modules that it says are never to be split, or its longest list."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [m for m in model.modules() if type(m).__name__ in names and any(True for _ in m.children())]
    embeddings = model.get_input_embeddings()
    found = [m for m in found if not any(inner is embeddings for inner in m.modules())]
    if not found:
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
        found = list(max(lists, key=lambda layers: sum(1 for _ in layers), default=nn.ModuleList()))
    return found


def deepspeed_config(strategy: str, training: TrainingConfig, runtime: Runtime) -> dict[str, Any]:
    """DeepSpeed's configuration: our own of a stage, or the file that the settings name, completed.

    Raises ConfigError for a file that is none, or that sets what hllm's settings say.
    """
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # batches are counted in tokens, by hllm
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.grad_clip or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "zero_optimization": {
            "stage": int(strategy[-1]),
            "contiguous_gradients": True,
            "overlap_comm": False,
        },
    }
    if runtime.deepspeed is None:
        return ours
    given = read_deepspeed(runtime.deepspeed)
    for name in OURS:
        if given.get(name, "auto") != "auto":
            raise ConfigError(
                f"{runtime.deepspeed} sets {name}, which hllm's own settings say (hllm train --set ...); remove it"
            )
    zero = {**given.get("zero_optimization", {})}
    zero = {k: v for k, v in zero.items() if v != "auto"} | {"stage": int(strategy[-1])}
    given = {k: v for k, v in given.items() if v != "auto" and k not in OURS}
    return ours | given | {"zero_optimization": zero}


def read_deepspeed(path: str) -> dict[str, Any]:
    """A DeepSpeed configuration file (JSON). Raises ConfigError for anything else."""
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ConfigError(f"{path} is no DeepSpeed configuration: {str(err)[:200]}") from err
    if not isinstance(given, dict) or not isinstance(given.get("zero_optimization", {}), dict):
        raise ConfigError(f"{path} is no DeepSpeed configuration: it is not a JSON object")
    return given


def import_deepspeed(device: torch.device) -> Any:
    """The package, quiet. Raises ConfigError where it is missing."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as err:
        raise ConfigError(
            "strategies zero1, zero2 and zero3 need the package deepspeed: "
            "pip install --no-build-isolation deepspeed, or use --strategy fsdp"
        ) from err
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Messages through shared memory would be compiled first, by a compiler that may not be there.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed

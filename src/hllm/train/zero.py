"""DeepSpeed's ZeRO as the optimiser of trained language models, and AdamW for the rest of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hllm.train.config import Runtime, TrainingConfig
from hllm.train.optim import BETAS, Optimizer, parameter_groups
from hllm.train.parallel import Parallel, deepspeed_config, import_deepspeed, language_models


class ZeroOptimizer(Optimizer):
    """`Optimizer` whose language models DeepSpeed updates; makes `parallel.engine`."""

    def __init__(
        self,
        network: nn.Module,
        training: TrainingConfig,
        runtime: Runtime,
        parallel: Parallel,
        device: torch.device,
    ) -> None:
        super().__init__(network, training)
        self.capturable = False
        deepspeed = import_deepspeed(device)
        towers = nn.ModuleList(language_models(network))
        inside = {id(p) for p in towers.parameters()}
        rest = [p for p in self.parameters if id(p) not in inside]
        models = [p for p in self.parameters if id(p) in inside]
        groups = [parameter_groups(network, some, training) if some else [] for some in (rest, models)]
        self.dense = torch.optim.AdamW(groups[0] or [{"params": []}], lr=training.learning_rate, betas=BETAS)
        inner = torch.optim.AdamW(groups[1], lr=training.learning_rate, betas=BETAS, fused=True)
        config = deepspeed_config(parallel.strategy, training, runtime)
        self.engine, self.zero, _, _ = deepspeed.initialize(model=towers, optimizer=inner, config=config)
        self.engine.train()
        self.models, self.rest, self.stage = models, rest, int(parallel.strategy[-1])
        self.shares = [float(group["lr"]) / training.learning_rate for group in groups[0]]
        self.model_shares = [float(group["lr"]) / training.learning_rate for group in groups[1]]
        parallel.engine = self.engine
        self._rest_norm = torch.zeros((), device=device)
        self._join_norms()

    def set_rate(self, rate: float) -> None:
        super().set_rate(rate)
        for group, share in zip(self.zero.param_groups, self.model_shares, strict=True):
            group["lr"] = rate * share

    def zero_grad(self) -> None:
        super().zero_grad()
        self.zero.zero_grad()  # the first backward pass of a step begins its sums anew

    def step(self, grad_clip: float | None) -> None:
        grads = [p.grad for p in self.rest if p.grad is not None]
        self._rest_norm = torch.nn.utils.get_total_norm(grads).to(self._rest_norm.device)
        self.engine.step()
        if grad_clip is not None and grads:
            norm = float(self.zero._global_grad_norm)
            torch._foreach_mul_(grads, min(1.0, grad_clip / (norm + 1e-6)))
        self.dense.step()

    def _join_norms(self) -> None:
        """Let DeepSpeed clip by the norm of all gradients, those of the rest of the network among them."""
        if self.stage < 3:
            of_models = self.zero.scaled_global_norm

            def joined(*arguments: Any, **options: Any) -> Tensor:
                own = torch.as_tensor(of_models(*arguments, **options), device=self._rest_norm.device)
                both = torch.hypot(own, self._rest_norm.to(own.dtype))
                return torch.where(own < 0, own, both)  # -1: no number

            self.zero.scaled_global_norm = joined
            return
        groups = self.zero._get_norm_groups
        self.zero._get_norm_groups = lambda: [*groups(), self._rest_norm]

    def whole(self, parameter: nn.Parameter) -> Tensor:
        if parameter not in self._known():
            return parameter.detach()
        from deepspeed.utils import safe_get_full_fp32_param

        value: Tensor = safe_get_full_fp32_param(parameter)
        return value.detach()

    def put(self, parameter: nn.Parameter, value: Tensor) -> None:
        if parameter not in self._known():
            parameter.detach().copy_(value)
            return
        from deepspeed.utils import safe_set_full_fp32_param

        if self.stage < 3:
            parameter.detach().copy_(value)
        else:
            from deepspeed.runtime.zero.partition_parameters import GatheredParameters

            with GatheredParameters([parameter], modifier_rank=0):
                parameter.detach().copy_(value)
        safe_set_full_fp32_param(parameter, value)  # what the optimiser holds beside it

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        return torch.Size(getattr(parameter, "ds_shape", parameter.shape))

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if parameter not in self._known():
            return super().state_of(parameter)
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        state = {key: safe_get_full_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq")}
        return state | {"step": torch.tensor(float(self._steps()))}

    def put_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if parameter not in self._known():
            super().put_state(parameter, key, value)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        self._link()
        if key == "step":
            for state in self.zero.optimizer.state.values():
                if "step" in state:
                    state["step"] = torch.as_tensor(value).to(torch.float32).cpu().clone()
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def _link(self) -> None:
        """Let DeepSpeed find its optimiser's state, which begins with the first step: it looks once, after the first
        of several groups has stepped."""
        inner = self.zero.optimizer
        held = [p for group in inner.param_groups for p in group["params"]]
        for p in held if self.stage < 3 else self.zero.fp32_partitioned_groups_flat:
            if p.numel() and "exp_avg" not in inner.state[p]:
                moments = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                inner.state[p] = {"step": torch.zeros(()), **moments}
        if self.stage < 3:
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()

    def _steps(self) -> float:
        return max((float(s["step"]) for s in self.zero.optimizer.state.values() if "step" in s), default=0.0)

    def _known(self) -> set[nn.Parameter]:
        if not hasattr(self, "_models"):
            self._models = set(self.models)
        return self._models


def make_optimizer(
    network: nn.Module,
    training: TrainingConfig,
    lazy: bool,
    runtime: Runtime,
    parallel: Parallel,
    device: torch.device,
) -> Optimizer:
    """The optimiser of a strategy."""
    made: Optimizer = (
        ZeroOptimizer(network, training, runtime, parallel, device)
        if parallel.strategy.startswith("zero")
        else Optimizer(network, training, lazy)
    )
    return made

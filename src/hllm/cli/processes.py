"""Commands that several processes carry out together: started by `--gpus N`, torchrun or `accelerate launch`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hllm import hardware
from hllm.cli import console
from hllm.errors import ConfigError, DeviceError, unknown
from hllm.ranks import join, launched

if TYPE_CHECKING:
    from hllm.config import Config
    from hllm.ranks import Ranks


def start(ctx: typer.Context, gpus: int | None, device: str) -> str:
    """The device of this process, which has met the others. With `gpus` of them asked for, and none started yet, this
    command runs again in as many processes, and typer.Exit ends it here.

    Raises DeviceError where the host has fewer GPUs; with device "cpu" processes share its cores.
    """
    if gpus is None or launched() or (gpus == 1 and device != "cpu"):
        return join(device)
    if device not in ("auto", "cuda", "cpu"):
        raise DeviceError(f"--gpus {gpus} takes the first GPUs of this host; leave out --device {device}")
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "cpu" and gpus > there:
        raise DeviceError(
            f"--gpus {gpus}: this host has {there} GPUs that torch can use"
            + (f"; use --gpus {there}" if there else "; --device cpu runs as many processes on its processor")
        )
    raise typer.Exit(run_again(gpus, ctx.find_root().obj))


def run_again(n: int, arguments: tuple[str, ...]) -> int:
    """Run `hllm` with `arguments` in `n` processes of this host; its exit code. One line says which of them failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(hardware.threads_of_one(n)))
    # Starting again is the user's: nothing is lost, and the same command goes on.
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=n, run_id="hllm", max_restarts=0, monitor_interval=0.2,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", shutdown_timeout=300,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "hllm", *arguments)
    except ChildFailedError as err:
        rank, failure = err.get_first_failure()
        if failure.exitcode in (1, 2, 130):  # said by the process itself, or a traceback is there
            return int(failure.exitcode)
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        console.error(
            f"process {rank} of {n} ended by {how}; the others were stopped. What was saved is kept: "
            "the same command goes on from there"
        )
        return 1
    except (SignalException, KeyboardInterrupt):
        return 130
    return 0


def ranks_now() -> Ranks:
    """The processes that `start` met."""
    from hllm.ranks import now

    return now()


def strategy_settings(strategy: str | None) -> dict[str, Any]:
    """Settings that --strategy stands for: a name, or a DeepSpeed file; absent, what `accelerate launch` was told.

    Raises ConfigError for another name, and for a file that does not tell its stage.
    """
    from hllm.train.config import STRATEGIES

    if strategy is None:
        return _of_accelerate()
    if strategy in STRATEGIES:
        return {"strategy": strategy}
    if not strategy.endswith(".json"):
        raise ConfigError(unknown("strategy", strategy, (*STRATEGIES, "FILE.json (of DeepSpeed)")))
    return _of_deepspeed(strategy)


def _of_deepspeed(path: str) -> dict[str, Any]:
    from hllm.artifacts import read_json

    if not Path(path).is_file():
        raise ConfigError(
            f"--strategy {path}: there is no such file; valid: ddp, fsdp, zero1, zero2, zero3, FILE.json"
        )
    given = read_json(Path(path))
    zero = given.get("zero_optimization") if isinstance(given, dict) else None
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in (1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage is {stage!r}; valid: 1, 2, 3")
    return {"strategy": f"zero{stage}", "deepspeed": str(Path(path).resolve())}


def _of_accelerate() -> dict[str, Any]:
    """What `accelerate launch` leaves in the environment of its processes."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return {"strategy": "fsdp"}
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() != "true":
        return {}
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file != "none":
        return _of_deepspeed(file)
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    return {"strategy": f"zero{stage}"} if stage in ("1", "2", "3") else {}


def described(ranks: Ranks, config: Config) -> str:
    """A line on how the processes share the training."""
    from hllm.train.config import chosen

    runtime, tokens = config.runtime, chosen(config.training.batch_tokens)
    own = f" ({runtime.deepspeed})" if runtime.deepspeed else ""
    return (
        f"{ranks.world} processes, strategy {runtime.strategy}{own}; batch_tokens {tokens:,} is the "
        f"batch of all, about {tokens // ranks.world:,} each"
    )

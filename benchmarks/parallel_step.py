"""A training step of item LLM and user LLM on one and on several GPUs: the same numbers, users a second, memory.

    torchrun --nproc-per-node 2 benchmarks/parallel_step.py --out parallel_step.json
    torchrun --nproc-per-node 2 benchmarks/parallel_step.py --tiny --device cpu --out /tmp/tiny.json

Both models have TinyLlama-1.1B's shape and random weights, the preset `hllm`'s step (float32 weights under bf16
autocast, AdamW, 512 shared negatives), texts of 120 tokens on average, histories of 14 events; 64 users a GPU, so the
batch grows with the GPUs. The row of one GPU is rank 0's, while the others wait. `check` rows train models of two
layers on the joined batch and compare loss and gradients with one GPU's.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from end_to_end_step import MAX_TEXT, MEAN_TEXT, PROMPT, TINY, TINYLLAMA, long_tailed
from told import told

from hllm import hardware, ranks
from hllm.config import load_config
from hllm.data.batches.training import TrainLoader
from hllm.data.dataset import Histories
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.tokens import Ragged
from hllm.items.source.live import LiveText
from hllm.losses.objective import make_objective
from hllm.losses.views import make_views
from hllm.models.hllm import HLLM, Network
from hllm.models.llm import LLMUserModel, load_llm
from hllm.models.scorers import make_scorer
from hllm.train.checkpoint import trained
from hllm.train.trainer import Trainer

LLAMA_7B = TINYLLAMA | {
    "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32,
}  # fmt: skip
EVENTS_A_USER = 14


def make_histories(users: int, catalogue: int) -> Histories:
    g = torch.Generator().manual_seed(0)
    lengths = long_tailed(users, EVENTS_A_USER, 50, 1, g) + 1
    popularity = 1.0 / torch.arange(1, catalogue + 1).double() ** 0.8
    tokens = 1 + torch.multinomial(popularity, int(lengths.sum()), replacement=True, generator=g)
    offsets = np.concatenate(([0], lengths.cumsum(0).numpy()))
    times = np.arange(len(tokens), dtype=np.int64)
    return Histories(tokens.numpy().astype(np.int32), times, offsets.astype(np.int64), np.arange(users))


def make_trainer(shape: dict[str, Any], args: argparse.Namespace, device: torch.device, who: ranks.Ranks,
                 strategy: str, negatives: int, users: int, train: str = "full") -> Trainer:  # fmt: skip
    """The trainer of a strategy: the batch is `users` a rank."""
    settings: dict[str, Any] = {"n_negatives": negatives, "strategy": strategy, "item_gradients": "cache"}
    if device.type == "cpu":
        settings["precision"] = "fp32"
    settings["batch_tokens"] = users * (EVENTS_A_USER + 1) * who.world
    config = load_config("hllm", overrides=settings)
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    own = long_tailed(args.catalogue, args.mean_text - PROMPT, args.max_text - PROMPT, 4, g)
    flat = torch.randint(2, shape["vocab_size"], (int(own.sum()),), generator=g, dtype=torch.int32)
    texts = Ragged(flat, torch.cat((torch.zeros(2, dtype=torch.long), own.cumsum(0))))
    with device:
        item, user = (load_llm(shape, "scratch") for _ in range(2))
        encoder = PackedEncoder(item, "item-token", list(range(2, 2 + PROMPT)), 1)
        lora = {"rank": 16, "alpha": 32, "dropout": 0.0} if train == "lora" else None
        source = LiveText(encoder, texts, train=train, mode="cache", chunk_tokens=8192, lora=lora)
        model = HLLM(LLMUserModel(user, source.width), make_scorer(config.scorer))
        if lora is not None:
            from hllm.items.source.lora import add_lora

            user.requires_grad_(False)
            add_lora(user, **lora)
    network = Network(source, model).to(device)
    counts = np.ones(args.catalogue + 1, dtype=np.int64)
    counts[0] = 0
    histories = make_histories(users * who.world * 8, args.catalogue)
    loader = TrainLoader(histories, 50, config.training.batch_tokens, 0, "cpu", config.training.windows)
    views = make_views(counts, config.objective, config.training.batch_tokens, 0, device, False)
    return Trainer(
        network, loader, views, make_objective(config.objective), config.training, lambda _: {}, device=device,
        runtime=config.runtime, show=False, ranks=who,
    )  # fmt: skip


def timed(trainer: Trainer, steps: int, who: ranks.Ranks, device: torch.device) -> dict[str, Any]:
    """Seconds of a step after one to warm up, its loss, and the memory of this rank."""
    trainer.network.train()
    batches = [batch for _, batch in zip(range(steps + 1), trainer.loader.epoch(0), strict=False)]
    losses, users = [trainer._step(batches[0], 1e-5)], 0
    wait(device)
    started = time.perf_counter()
    for batch in batches[1:]:
        losses.append(trainer._step(batch, 1e-5))
        users += batch.n_users
    wait(device)
    seconds = time.perf_counter() - started
    first = losses[0].clone().reshape(1)
    who.average([first])
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return {
        "seconds_a_step": round(seconds / len(batches[1:]), 3),
        "users_a_second": round(users / seconds, 2),
        "loss_of_first_step": round(float(first) * who.world, 5),
        "peak_gib_a_gpu": [round(x, 2) for x in who.gather(peak)],
        "plan": str(next(m.plan for m in trainer.network.modules() if isinstance(m, LiveText))),
    }


def gradients(trainer: Trainer, who: ranks.Ranks) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients (AdamW's first moments) of the first step."""
    trainer.network.train()
    loss = trainer._step(next(iter(trainer.loader.epoch(0))), 0.0).reshape(1)
    who.average([loss])
    found = {}
    for name, p in trained(trainer.network, trainer.optimizer).items():
        state = trainer.optimizer.state_of(p)
        if "exp_avg" in state:
            found[name] = state["exp_avg"].float().cpu()
    return float(loss) * who.world, found


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def main() -> None:  # noqa: C901
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--strategies", default="ddp,fsdp,zero2,zero3")
    parser.add_argument("--rows", default="check,speed,negatives,7b")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no row after so many seconds")
    args = parser.parse_args()
    began = time.perf_counter()
    device = torch.device(ranks.join(args.device))
    who = ranks.now()
    shape = TINY if args.tiny else TINYLLAMA
    args.catalogue, args.mean_text, args.max_text = (
        (200, 20, 32) if args.tiny else (100_000, MEAN_TEXT, MAX_TEXT)
    )
    users, many = (4, 64) if args.tiny else (64, 28_672)
    record: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": f"torchrun --nproc-per-node {who.world} benchmarks/parallel_step.py --out parallel_step.json",
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "rows": [],
    }

    def row(name: str, **values: Any) -> None:
        if who.first:
            record["rows"].append({"row": name, "at_second": round(time.perf_counter() - began), **values})
            args.out.write_text(json.dumps(record, indent=1) + "\n")
            print(name, json.dumps(values), flush=True)

    def late() -> bool:
        return bool(who.most(int(time.perf_counter() - began > args.seconds)))

    strategies = args.strategies.split(",")
    if "check" in args.rows:
        small = shape | {"num_hidden_layers": 2}
        joined = users * who.world
        reference: tuple[float, dict[str, torch.Tensor]] = (0.0, {})
        if who.first:
            reference = gradients(
                make_trainer(small, args, device, ranks.ALONE, "ddp", 512, joined), ranks.ALONE
            )
        who.wait()
        for strategy in strategies:
            free(device)
            loss, found = gradients(make_trainer(small, args, device, who, strategy, 512, users), who)
            if who.first:
                worst = max(
                    float((found[n] - g).norm() / g.norm().clamp(min=1e-12)) for n, g in reference[1].items()
                    if float(g.norm()) > 1e-9
                )  # fmt: skip
                row(f"check {strategy}", loss=loss, loss_alone=reference[0], worst_relative_gradient=worst)
            del found
    if "speed" in args.rows:
        free(device)
        alone = {}
        if who.first:
            trainer = make_trainer(shape, args, device, ranks.ALONE, "ddp", 512, users)
            alone = timed(trainer, args.steps, ranks.ALONE, device)
            row("speed, one GPU", **alone)
            del trainer
        alone = who.agree(alone)
        for strategy in strategies:
            if late():
                break
            free(device)
            trainer = make_trainer(shape, args, device, who, strategy, 512, users)
            found = timed(trainer, args.steps, who, device)
            row(
                f"speed {strategy}",
                **found,
                times_one=round(found["users_a_second"] / alone["users_a_second"], 3),
            )
            del trainer
    if "negatives" in args.rows and not late():
        free(device)
        trainer = make_trainer(shape, args, device, who, "ddp", many, users)
        row(f"{many} negatives, ddp", **timed(trainer, 1, who, device))
        del trainer
    if "7b" in args.rows:
        big = shape if args.tiny else LLAMA_7B
        for train in ("lora", "full"):
            if late():
                break
            free(device)
            try:
                trainer = make_trainer(big, args, device, who, "fsdp", 64, 2, train)
                row(f"7B + 7B, fsdp, {train}", **timed(trainer, 1, who, device))
                del trainer
            except torch.OutOfMemoryError as err:
                row(f"7B + 7B, fsdp, {train}", failed=str(err).split(". ")[0])
                break
    with suppress(Exception):
        ranks.leave()


if __name__ == "__main__":
    told(main)

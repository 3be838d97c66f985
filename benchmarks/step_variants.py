"""Milliseconds of a training step by ways to run a user model's blocks, and how far their gradients differ.

    python benchmarks/step_variants.py [--preset hllm-lite] [--windows 200 800] [--steps 60] [--out FILE]

Ways: the captured step as it is; blocks compiled inside it; both with kernels of our own for attention and loss;
compiled with FlexAttention over rows, and over all tokens
as one row, where the bias by distance is a `score_mod` and nothing of size (B, H, R, R) is written. 16,384 tokens a
step, text and ID, on synthetic histories (half of them below 100 events, some above 1,000). Differences are those of
one step without dropout to the plain step, relative to the largest gradient; "fp32" shows what bf16 itself does. Rows
are written as they come; after --limit seconds no further way is begun. Needs a CUDA device; --device cpu --tokens 512
runs all ways uncaptured and uncompiled, to see that they agree.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from told import told
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from hllm import hardware
from hllm.artifacts import write_json
from hllm.config import Config, load_config
from hllm.data.batches.training import TrainLoader
from hllm.data.dataset import Histories
from hllm.items.source.build import make_source
from hllm.losses.objective import make_objective
from hllm.losses.views import make_views
from hllm.models import block as block_module
from hllm.models.attention import Layout, attend
from hllm.packing import Rows, Signals
from hllm.runs.build import with_source
from hllm.train.captured import PaddedShape
from hllm.train.compiled import CompiledBlocks, parts_of
from hllm.train.trainer import Trainer

N_ITEMS, N_USERS, BLOCK, WARMUP = 3416, 6000, 128, 10


def histories() -> Histories:
    """Log-normal lengths and popular items, about MovieLens-1M's."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.6, 1.0, N_USERS), 5, 2300).astype(np.int64)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    share = 1 / np.arange(20, N_ITEMS + 20)
    tokens = rng.choice(N_ITEMS, offsets[-1], p=share / share.sum()).astype(np.int32) + 1
    times = np.cumsum(rng.integers(1, 5000, offsets[-1]))
    return Histories(tokens, times, offsets, np.arange(N_USERS))


def make_trainer(config: Config, data: Histories, device: torch.device) -> Trainer:
    """A trainer of `config`, ready to take steps."""
    torch.manual_seed(0)
    if config.training.epochs is None:
        config = config.model_copy(update={"epochs": 40})
    trained = torch.arange(N_ITEMS + 1) > 0
    raw = torch.randn(N_ITEMS + 1, 384) * trained.unsqueeze(1) if config.items.item_llm else None
    source = make_source(
        config.items, config.users.d_model, trained, raw, trained if raw is not None else None
    )
    network = with_source(source, config).to(device)
    training = config.training
    counts = np.bincount(data.tokens, minlength=N_ITEMS + 1)
    counts[1:] += 1
    views = make_views(counts, config.objective, training.batch_tokens, 0, device, whole=True)
    loader = TrainLoader(data, training.max_len, training.batch_tokens, 0, device, training.windows)  # type: ignore[arg-type]
    made = Trainer(
        network,
        loader,
        views,
        make_objective(config.objective),
        training,
        lambda network: {},
        device=device,
        runtime=config.runtime,
        show=False,
    )
    made.network.train()
    return made


# ------------------------------------------------------------------------------------- FlexAttention


@dataclass(frozen=True)
class FlexLayout(Layout):
    """Rows with the mask that FlexAttention takes; `packed`: of all tokens as one row."""

    blocks: BlockMask | None = None
    packed: bool = False


def flex_attend(
    q: Tensor, k: Tensor, v: Tensor, layout: FlexLayout, by_distance: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """As `attend`, by FlexAttention."""
    assert layout.blocks is not None and by_distance is not None
    last = by_distance.shape[1] - 1

    def bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + by_distance[h, (i - j).clamp(0, last)]

    b, r = layout.rows.segments.shape
    if layout.packed:
        qr, kr, vr = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # (1, H, T, D)
        return flex_attention(qr, kr, vr, bias, layout.blocks).squeeze(0).transpose(0, 1)
    qkv = torch.stack((q, k, v), dim=1)
    grid = qkv.new_zeros(b * r, *qkv.shape[1:]).index_copy(0, layout.rows.slots, qkv)
    qr, kr, vr = grid.view(b, r, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
    out = flex_attention(qr, kr, vr, bias, layout.blocks)
    return out.transpose(1, 2).reshape(b * r, *q.shape[1:])[layout.rows.slots]


def rows_layout(rows: Rows, signals: Signals) -> FlexLayout:
    """A block mask over rows of R slots."""
    segments = rows.segments
    b, r = segments.shape

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (segments[b, i] == segments[b, j]) & (j <= i)

    made = create_block_mask(seen, b, None, r, r, device=segments.device, BLOCK_SIZE=BLOCK)
    return FlexLayout(rows, None, blocks=made)


def packed_layout(rows: Rows, signals: Signals) -> FlexLayout:
    """A block mask over all tokens as one row: of each block of queries, the blocks since its first history began."""
    segment = rows.segments.flatten()[rows.slots]  # (T,)
    t = torch.arange(segment.shape[0], device=segment.device)
    opens = torch.ones_like(segment, dtype=torch.bool)
    opens[1:] = segment[1:] != segment[:-1]
    start = torch.where(opens, t, 0).cummax(dim=0).values
    first = start[::BLOCK] // BLOCK  # (N,)
    number = torch.arange(first.shape[0], device=first.device)
    count = (number - first + 1).int().view(1, 1, -1)
    index = (first.unsqueeze(1) + number).clamp(max=first.shape[0] - 1).int()[None, None]

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (segment[i] == segment[j]) & (j <= i)

    made = BlockMask.from_kv_blocks(
        count, index, BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=(len(t), len(t))
    )
    return FlexLayout(rows, None, blocks=made, packed=True)


class Distances(torch.nn.Module):
    """A relative bias read by the `score_mod` itself: the table as it is, whatever the length of rows."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.table = inner.table

    def forward(self, length: int) -> Tensor:
        return self.table


def with_flex(trainer: Trainer, layout: Callable[[Rows, Signals], FlexLayout]) -> None:
    """Attention of the trainer's blocks by FlexAttention."""
    user_model: Any = trainer.network.model.user_model
    user_model.layout = layout
    for block in user_model.blocks:
        block.attention.bias = Distances(block.attention.bias)


# ------------------------------------------------------------------------------------- measuring

WAYS: dict[str, dict[str, Any]] = {
    "captured": {"compile": False, "kernels": False},
    "compiled blocks": {"compile": True, "kernels": False},
    "kernels": {"compile": False, "kernels": True},
    "compiled, kernels": {"compile": True, "kernels": True},
    "compiled, flex over rows": {"compile": True, "kernels": False, "layout": rows_layout},
    "compiled, flex over tokens": {"compile": True, "kernels": False, "layout": packed_layout},
}


def configuration(args: argparse.Namespace, window: int, **settings: Any) -> Config:
    given = {"max_len": window, "batch_tokens": args.tokens, "epochs": 40, **settings}
    if load_config(args.preset).items.item_llm:
        given["item_llm"] = "random"
    return load_config(args.preset, overrides=given)


def gradients(
    config: Config, data: Histories, device: torch.device, way: dict[str, Any]
) -> tuple[float, dict]:
    """Loss and gradients of one step of the user half, on the same batch and weights whatever the way."""
    trainer = make_trainer(config.model_copy(update={"kernels": way["kernels"]}), data, device)
    if "layout" in way:
        with_flex(trainer, way["layout"])
    shape = trainer.shape or PaddedShape(trainer.loader)
    batch = shape.pad(next(iter(trainer.loader.epoch(0))))
    assert batch is not None
    view = trainer.views.view(batch, (0, 0))
    vectors = trainer.network.source.lease(view.tokens).vectors
    half = plain_step(trainer).user_half
    if way["compile"] and device.type == "cuda":
        loss = CompiledBlocks(parts_of(trainer.network.model)).run(half, batch, view, vectors)
    else:
        loss = half(batch, view, vectors)
    found = {n: p.grad.float() for n, p in trainer.network.model.named_parameters() if p.grad is not None}
    assert vectors.grad is not None
    return float(loss), found | {"vectors": vectors.grad.float()}


def plain_step(trainer: Trainer) -> Any:
    """The step beneath the captured one."""
    step: Any = trainer.step
    return getattr(step, "step", step)


def differences(mine: tuple[float, dict], theirs: tuple[float, dict]) -> dict[str, float]:
    (loss, grads), (their_loss, their_grads) = mine, theirs
    largest = max(float(g.abs().max()) for g in their_grads.values())
    worst = max(float((grads[name] - g).abs().max()) for name, g in their_grads.items())
    finite = all(bool(torch.isfinite(g).all()) for g in grads.values())
    return {"loss": abs(loss - their_loss), "gradients": worst / largest if finite else float("nan")}


def milliseconds(trainer: Trainer, n: int) -> tuple[float, float]:
    """Mean of `n` steps as in training, and the seconds of the steps before, compiling and capture included."""
    batches = (batch for epoch in range(1_000_000) for batch in trainer.loader.epoch(epoch))
    started = time.perf_counter()
    for batch in islice(batches, WARMUP):
        trainer._step(batch, 1e-3)
    wait(trainer.device)
    begun = time.perf_counter()
    for batch in islice(batches, n):
        trainer._step(batch, 1e-3)
    wait(trainer.device)
    return (time.perf_counter() - begun) / n * 1e3, begun - started


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    args: argparse.Namespace, data: Histories, device: torch.device, window: int, name: str, plain: Any
) -> dict[str, Any]:
    """One row: milliseconds, seconds of warm-up, memory, and differences to `plain`."""
    way = WAYS[name]
    block_module.attend = flex_attend if "layout" in way else attend  # type: ignore[assignment]
    torch.compiler.reset()
    still = configuration(args, window, dropout=0.0, **args.still)
    found = differences(gradients(still, data, device, way), plain)
    given = {"compile": way["compile"], "kernels": way["kernels"]}
    trainer = make_trainer(configuration(args, window, **given), data, device)
    if "layout" in way:
        with_flex(trainer, way["layout"])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ms, warmup = milliseconds(trainer, args.steps)
    failed = trainer.compiled is not None and trainer.compiled.failed
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {
        "window": window,
        "way": name + (" (failed to compile: plain)" if failed else ""),
        "milliseconds": ms,
        "warm_up_seconds": warmup,
        "peak_gib": memory,
        "difference_to_plain": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="hllm-lite")
    parser.add_argument("--windows", type=int, nargs="+", default=[200, 800])
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--limit", type=float, default=200.0, help="seconds")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    started, device, data = time.perf_counter(), hardware.pick_device(args.device), histories()
    args.still = {} if load_config(args.preset).users.mask_prob == 0 else {"mask_prob": 0.0}
    document: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "command": hardware.command_line(),
        "rows": [],
    }
    for name in args.ways:  # all windows of a way that matters less come later
        for window in args.windows:
            if time.perf_counter() - started > args.limit:
                print(f"left out after {args.limit:.0f} s: window {window}, {name}")
                continue
            block_module.attend = attend
            still = configuration(args, window, dropout=0.0, **args.still)
            plain = gradients(still, data, device, WAYS["captured"])
            try:
                row = measure(args, data, device, window, name, plain)
            except Exception as err:  # a way that this torch cannot take is a row, too
                row = {"window": window, "way": name, "error": f"{type(err).__name__}: {err}"[:500]}
            if name == "captured":
                wide = still.model_copy(update={"precision": "fp32"})
                row["difference_to_fp32"] = differences(plain, gradients(wide, data, device, WAYS[name]))
            document["rows"].append(row)
            print(row, flush=True)
            if args.out is not None:
                write_json(args.out, document)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    told(main)

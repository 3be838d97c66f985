"""The packed `hstu` beside the same layers in plain padded PyTorch: targets a second in training, and memory.

    python benchmarks/hstu_padded.py [--windows 200 800] [--steps 60] [--tokens 16384] [--out FILE]

Both train the preset `hstu` (ids alone, full softmax, AdamW, clip, bf16) on the same windows of synthetic histories.
Plain: users padded to the longest window of their batch, run kernel by kernel, the logits of all positions with a
target against all items at once; also with `torch.compile`. Packed: the captured step, plain and with compiled blocks.
First both are seen to give the same hidden states in float64 from the same weights. Needs a CUDA device; --device cpu
--tokens 512 shows that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from step_variants import N_ITEMS, histories, make_trainer, milliseconds, wait
from told import told
from torch import Tensor, nn

from hllm import hardware
from hllm.artifacts import write_json
from hllm.config import load_config
from hllm.data.dataset import Histories
from hllm.models.hstu import EPSILON, HSTUBlock, HSTUUserModel
from hllm.models.timebias import gap_buckets
from hllm.packing import make_rows, pad, unpad

WARMUP = 10


class PaddedHSTU(nn.Module):
    """`HSTUUserModel` on padded histories (U, L, d), as one would write it down, around the packed model's weights."""

    def __init__(self, packed: HSTUUserModel) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        length = x.shape[1]
        x = self.packed.dropout(self.packed.input_norm(x))
        at = torch.arange(length, device=x.device)
        causal = at.unsqueeze(1) >= at
        distance = (at.unsqueeze(1) - at).clamp(min=0)
        buckets = gap_buckets(times, times).squeeze(1)  # (U, L, L)
        for block in self.packed.blocks:
            x = self.block(block, x, causal, distance, buckets)  # type: ignore[arg-type]
        return self.packed.norm(x)

    def block(self, block: HSTUBlock, x: Tensor, causal: Tensor, distance: Tensor, buckets: Tensor) -> Tensor:
        u, length, d = x.shape
        mixed = F.silu(block.uvqk(F.layer_norm(x, (d,), eps=EPSILON)))
        gate, v, q, k = mixed.view(u, length, 4, block.n_heads, d // block.n_heads).unbind(2)
        assert block.time_table is not None
        table = block.bias.table
        bias = table[:, distance.clamp(max=table.shape[1] - 1)].unsqueeze(0)  # (1, H, L, L)
        bias = bias + F.embedding(buckets, block.time_table.T).permute(0, 3, 1, 2)
        weights = F.silu(torch.einsum("uihd,ujhd->uhij", q, k) + bias.to(q.dtype)) / block.n * causal
        mixed = torch.einsum("uhij,ujhd->uihd", weights, v).reshape(u, length, d)
        gated = gate.reshape(u, length, d) * F.layer_norm(mixed, (d,), eps=EPSILON)
        return x + block.out(block.dropout(gated))


class PaddedStep:
    """A training step of the padded model: embedding, model, logits of all items, AdamW."""

    def __init__(self, trainer: Any, compiled: bool) -> None:
        self.trainer, self.device = trainer, trainer.device
        network = trainer.network
        self.model = PaddedHSTU(network.model.user_model)
        self.run = torch.compile(self.model, dynamic=True) if compiled else self.model
        self.items = nn.Embedding(N_ITEMS + 1, network.source.width, padding_idx=0).to(self.device)
        self.scorer = network.model.scorer
        self.parameters = [*network.model.parameters(), *self.items.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, fused=True)

    def __call__(self, batch: Any) -> None:
        tokens, times, targets = (pad(x, batch.offsets) for x in (batch.tokens, batch.times, batch.targets))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            hidden = self.run(self.items(tokens), times)
            chosen = targets > 0
            logits = self.scorer.query(hidden[chosen]) @ self.scorer.item(self.items.weight[1:]).T
            loss = F.cross_entropy(logits.float(), targets[chosen] - 1, label_smoothing=0.1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()


def padded_milliseconds(step: PaddedStep, n: int) -> tuple[float, float]:
    """Mean of `n` steps on the trainer's batches, and the seconds of the steps before."""
    loader = step.trainer.loader
    batches = (batch for epoch in range(1_000_000) for batch in loader.epoch(epoch))
    started = time.perf_counter()
    for batch in islice(batches, WARMUP):
        step(batch.to(step.device))
    wait(step.device)
    begun = time.perf_counter()
    for batch in islice(batches, n):
        step(batch.to(step.device))
    wait(step.device)
    return (time.perf_counter() - begun) / n * 1e3, begun - started


@torch.no_grad()
def check(data: Histories, device: torch.device) -> float:
    """Largest difference of hidden states, packed and padded, in float64 from random weights."""
    settings = {
        "max_len": 60,
        "batch_tokens": 600,
        "d_model": 32,
        "n_layers": 2,
        "dropout": 0.0,
        "mask_prob": 0.0,
    }
    trainer = make_trainer(load_config("hstu", overrides=settings), data, device)
    model: Any = trainer.network.model.user_model.double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    batch = next(iter(trainer.loader.epoch(0))).to(device)
    x = torch.randn(batch.n_tokens, 32, dtype=torch.float64, device=device)
    packed = model(x, make_rows(batch), batch.signals)
    padded = PaddedHSTU(model)(pad(x, batch.offsets), pad(batch.times, batch.offsets))
    return float((packed - unpad(padded, batch.offsets)).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, nargs="+", default=[200, 800])
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device, data = hardware.pick_device(args.device), histories()
    difference = check(data, device)
    print(f"largest difference in float64: {difference:.1e}", flush=True)
    assert difference < 1e-9
    document: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "command": hardware.command_line(),
        "rows": [],
    }
    cuda = device.type == "cuda"
    ways = ["padded", "padded, compiled", "packed", "packed, compiled"] if cuda else ["padded", "packed"]
    for window in args.windows:
        for way in ways:
            torch.compiler.reset()
            compiled = way.endswith("compiled")
            config = load_config(
                "hstu", overrides={"max_len": window, "batch_tokens": args.tokens, "compile": compiled}
            )
            try:
                trainer = make_trainer(config, data, device)
                plan = trainer.loader.plan(0)
                targets = float((plan.windows.lengths - 1).sum()) / len(plan)
                if cuda:
                    torch.cuda.reset_peak_memory_stats(device)
                if way.startswith("padded"):
                    ms, warmup = padded_milliseconds(PaddedStep(trainer, compiled), args.steps)
                else:
                    ms, warmup = milliseconds(trainer, args.steps)
            except Exception as err:  # out of memory, or nothing that this torch can compile, is a row, too
                row = {"window": window, "way": way, "error": f"{type(err).__name__}: {err}"[:300]}
            else:
                row = {
                    "window": window,
                    "way": way,
                    "milliseconds": ms,
                    "targets_per_second": targets / ms * 1e3,
                    "warm_up_seconds": warmup,
                    "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if cuda else None,
                }
            document["rows"].append(row)
            print(row, flush=True)
            if args.out is not None:
                write_json(args.out, document)


if __name__ == "__main__":
    told(main)

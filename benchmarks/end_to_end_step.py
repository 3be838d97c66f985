"""One training step of an item LLM and a user LLM together: how much of the chip it uses, and against the plain way.

    python benchmarks/end_to_end_step.py --out end_to_end.json            # one GPU of 80 GB, under 8 minutes
    python benchmarks/end_to_end_step.py --tiny --out /tmp/tiny.json      # the same on a CPU, in seconds

Both models have TinyLlama-1.1B's shape and random weights: bf16 with float32 master weights and AdamW. Texts have
a long-tailed length up to 256 tokens (mean 120, 10 of them a prompt that all share), histories one up to 50 (mean
14) from a catalogue of 100,000 items with Zipf popularity; 64 users and 512 shared negatives a step.

Useful operations are those of each distinct item once and of the users' events, forward and backward (6 a weight
and token, and causal attention's); running anything twice is not counted, nor padding, nor a prompt more than
once. They are held against the rate of an 8192^3 bf16 matrix product measured in the same process.

`plain` is ByteDance's step written plainly: every occurrence of an item is encoded, histories are filled up to 50
(+ 1) with random items, texts are padded, layers checkpointed. `plain, packed` leaves out the padding.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from told import told
from torch import Tensor, nn

from hllm import hardware
from hllm.items.encoders import packed_attention
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.tokens import Ragged
from hllm.items.source.live import LiveText
from hllm.models.llm import LLMUserModel, load_llm
from hllm.packing import Batch, make_rows, offsets_of

TINYLLAMA = {
    "model_type": "llama", "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
TINY = TINYLLAMA | {
    "vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
MAX_TEXT, MEAN_TEXT, PROMPT, MAX_HISTORY, MEAN_HISTORY = 256, 120, 10, 50, 14
TEMPERATURE = 0.07


@dataclass
class World:
    """A catalogue's texts, and one batch: history lengths, the items seen, and negatives (tokens)."""

    texts: Ragged
    lengths: Tensor  # (U,) events that are inputs
    events: list[Tensor]  # per user: inputs and, one later, targets
    negatives: Tensor
    fillers: Tensor


def long_tailed(n: int, mean: float, longest: int, least: int, generator: torch.Generator) -> Tensor:
    """Lognormal lengths int64 (n,) in [least, longest], scaled until their mean is `mean`."""
    raw, scale = torch.exp(0.7 * torch.randn(n, generator=generator)), mean
    for _ in range(30):
        lengths = (raw * scale).clamp(least, longest)
        scale *= mean / float(lengths.mean())
    return lengths.round().long()


def make_world(
    users: int, negatives: int, catalogue: int, vocab: int, max_text: int, mean_text: float
) -> World:
    g = torch.Generator().manual_seed(0)
    own = long_tailed(catalogue, mean_text - PROMPT, max_text - PROMPT, 4, g)
    flat = torch.randint(2, vocab, (int(own.sum()),), generator=g, dtype=torch.int32)
    texts = Ragged(flat, torch.cat((torch.zeros(2, dtype=torch.long), own.cumsum(0))))
    popularity = 1.0 / torch.arange(1, catalogue + 1).double() ** 0.8
    lengths = long_tailed(users, MEAN_HISTORY, MAX_HISTORY, 1, g)

    def draw(n: int) -> Tensor:
        return 1 + torch.multinomial(popularity, n, replacement=False, generator=g)

    events = [draw(int(n) + 1) for n in lengths]
    uniform = 1 + torch.randint(catalogue, (negatives + users * MAX_HISTORY,), generator=g)
    return World(texts, lengths, events, uniform[:negatives], uniform[negatives:])


class PlainOrder(LiveText):
    """Texts in the order they come, so many tokens a chunk: no sorting by length."""

    def _chunks(self, tokens: Tensor, budget: int) -> tuple[list[Tensor], Tensor, Tensor]:
        host = tokens.cpu()
        parts = list(host.split(max(1, budget // MAX_TEXT)))
        everyone = torch.arange(len(host), device=self.device)
        return parts, everyone, everyone


class MasterAdamW:
    """AdamW on float32 copies of bf16 weights."""

    def __init__(self, parameters: list[nn.Parameter], device: torch.device) -> None:
        self.low = parameters
        self.master = [p.detach().float().requires_grad_() for p in parameters]
        self.inner = torch.optim.AdamW(self.master, lr=1e-5, fused=device.type == "cuda")
        for p in self.master:  # the moments exist from the start, so that memory is planned with them
            zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.inner.state[p] = {"step": torch.zeros((), device=device), **zeros}

    @torch.no_grad()
    def step(self) -> None:
        norm = nn.utils.get_total_norm([p.grad for p in self.low if p.grad is not None])
        scale = (1.0 / (norm.float() + 1e-6)).clamp(max=1.0)
        # A part at a time: float32 gradients of all weights at once would be as large as the weights.
        groups: list[list[int]] = [[]]
        for i, p in enumerate(self.low):
            if p.grad is None:
                continue
            groups[-1].append(i)
            if sum(self.low[j].numel() for j in groups[-1]) > 2e8:
                groups.append([])
        for group in groups:
            for i in group:
                self.master[i].grad = self.low[i].grad.float() * scale  # type: ignore[union-attr]
                self.low[i].grad = None
            self.inner.step()  # touches only weights with a gradient
            for i in group:
                self.low[i].copy_(self.master[i])
                self.master[i].grad = None


def sampled_loss(hidden: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Cross entropy of each event's target among the shared negatives, by cosine."""
    query, positive, negative = (F.normalize(x.float(), dim=-1) for x in (hidden, positives, negatives))
    logits = torch.cat(((query * positive).sum(-1, keepdim=True), query @ negative.T), 1) / TEMPERATURE
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def make_step(world: World, source: LiveText, user: LLMUserModel, optimizer: MasterAdamW, device: torch.device,
              share: bool, fill: bool) -> tuple[Callable[[], Tensor], Tensor]:  # fmt: skip
    """A step, and the tokens that it encodes. share: each distinct item once; fill: histories filled up."""
    inputs, targets = torch.cat([e[:-1] for e in world.events]), torch.cat([e[1:] for e in world.events])
    every = torch.cat(world.events)
    ends = torch.tensor([len(e) for e in world.events]).cumsum(0)
    last = torch.zeros(len(every), dtype=torch.bool).index_fill(0, ends - 1, True)
    if share:
        tokens, where = torch.unique(torch.cat((inputs, targets, world.negatives)), return_inverse=True)
        at_inputs, at_targets, at_negatives = where.split([len(inputs), len(targets), len(world.negatives)])
    else:
        filler = world.fillers[: len(world.events) * (MAX_HISTORY + 1) - len(every)] if fill else every[:0]
        tokens = torch.cat((every, world.negatives, filler))
        at_inputs = (~last).nonzero().flatten()
        at_targets, at_negatives = at_inputs + 1, len(every) + torch.arange(len(world.negatives))
    ones = torch.ones(len(inputs), dtype=torch.long, device=device)
    users = torch.arange(len(world.events), device=device)
    offsets = offsets_of(world.lengths)
    rows = make_rows(Batch(users, ones, ones, ones, offsets.to(device), host_lengths=world.lengths))
    tokens, at_inputs, at_targets, at_negatives = (
        x.to(device) for x in (tokens, at_inputs, at_targets, at_negatives)
    )

    def step() -> Tensor:
        lease = source.lease(tokens)
        vectors = lease.vectors
        hidden = user(vectors[at_inputs], rows)
        loss = sampled_loss(hidden, vectors[at_targets], vectors[at_negatives])
        loss.backward()
        lease.backward()
        optimizer.step()
        return loss.detach()

    return step, tokens


def useful_operations(world: World, source: LiveText, tokens: Tensor, config: Any) -> float:
    """Of the distinct items and the users' events, forward and backward; the prompt's once."""

    def model(lengths: Tensor, before: int = 0) -> float:
        d, layers = config.hidden_size, config.num_hidden_layers
        kv = d * config.num_key_value_heads // config.num_attention_heads
        weights = layers * (2 * d * d + 2 * d * kv + 3 * d * config.intermediate_size)
        n = lengths.double()
        pairs = float((n * (n + 1) / 2 + n * before).sum())
        return 3.0 * (2 * weights * float(n.sum()) + layers * 4 * d * pairs)

    own = source.lengths()[torch.unique(tokens.cpu())]
    d, events = config.hidden_size, int(world.lengths.sum())
    scores = 6.0 * events * (len(world.negatives) + 1) * d
    return model(own, PROMPT) + model(torch.tensor([PROMPT])) + model(world.lengths) + scores


def matmul_rate(device: torch.device, n: int) -> float:
    """Operations a second of an n^3 bf16 matrix product."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        for _ in range(8):
            a @ b
        wait(device)
        best = min(best, (time.perf_counter() - start) / 8)
    return 2.0 * n**3 / best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def set_compiled(model: nn.Module, on: bool) -> None:
    """Fuse the layers' element-wise work: norms, feed-forward, rotary embedding. Attention's kernel stays."""
    import sys

    library: Any = sys.modules[type(model).__module__]
    plain = getattr(library.apply_rotary_pos_emb, "_torchdynamo_orig_callable", library.apply_rotary_pos_emb)
    library.apply_rotary_pos_emb = torch.compile(plain, dynamic=True) if on else plain
    for layer in model.layers:  # type: ignore[union-attr]
        for name, part in layer.named_children():
            if "attn" not in name:
                part._compiled_call_impl = None
                if on:
                    part.compile(dynamic=True)


@dataclass(frozen=True)
class Variant:
    """One way of doing the step."""

    name: str
    share: bool = True
    prefix: bool = True
    packing: bool = True
    mode: str = "cache"
    compiled: bool = False
    fill: bool = False


VARIANTS = [
    Variant("ours, by memory", mode="auto"),
    Variant("ours, by memory, compiled", mode="auto", compiled=True),
    Variant("cache"),
    Variant("cache, compiled", compiled=True),
    Variant("checkpoint", mode="checkpoint"),
    Variant("without the shared prefix", prefix=False),
    Variant("without sharing items", share=False),
    Variant("without packing", packing=False, prefix=False),
    Variant("plain, packed", share=False, prefix=False, mode="checkpoint", fill=True),
    Variant("plain", share=False, prefix=False, packing=False, mode="checkpoint", fill=True),
]


class Bench:
    """Two models and one batch, and every variant's step on them."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        self.shape = TINY if args.tiny else TINYLLAMA
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        users, negatives, catalogue = (
            (8, 16, 200) if args.tiny else (args.users, args.negatives, args.catalogue)
        )
        text, mean = (64, 30) if args.tiny else (MAX_TEXT, MEAN_TEXT)
        self.world = make_world(users, negatives, catalogue, self.shape["vocab_size"], text, mean)
        torch.manual_seed(0)
        with torch.device(device):
            self.item_llm, user_llm = (load_llm(self.shape, "scratch", dtype) for _ in range(2))
        self.item_llm.config._attn_implementation_internal = "sdpa"
        self.prefix = list(range(2, 2 + PROMPT))
        self.user = LLMUserModel(user_llm, self.shape["hidden_size"]).train()
        self.packed = PackedEncoder(self.item_llm, "last", self.prefix)
        trained = [p for m in (self.item_llm, self.user) for p in m.parameters() if p.requires_grad]
        self.optimizer = MasterAdamW(trained, device)
        self.rate = matmul_rate(device, 512 if args.tiny else 8192)

    def source(self, variant: Variant) -> LiveText:
        encoder, backbone = self.packed, self.packed.backbone
        backbone.packed = variant.packing
        implementation = packed_attention.NAME if variant.packing else "sdpa"
        self.item_llm.config._attn_implementation_internal = implementation
        encoder.shares_prefix = variant.prefix
        kind = LiveText if variant.packing or variant.share else PlainOrder
        chunk = 512 if self.args.tiny else self.args.chunk_tokens
        return kind(encoder, self.world.texts, mode=variant.mode, chunk_tokens=chunk).to(self.device).train()

    def check(self) -> float:
        """Least cosine between packed vectors and padded ones, of 64 items."""
        few = torch.arange(1, 65, device=self.device)
        with torch.no_grad():
            packed, padded = (self.source(v).encode(few) for v in (VARIANTS[0], VARIANTS[-1]))
        return float(F.cosine_similarity(packed, padded).min())

    def run(self, variant: Variant) -> dict[str, Any]:
        args, device = self.args, self.device
        source = self.source(variant)
        set_compiled(self.item_llm, variant.compiled)
        step, tokens = make_step(
            self.world, source, self.user, self.optimizer, device, variant.share, variant.fill
        )
        repeats = 1 if variant.fill else args.steps
        loss = step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            loss = step()
        wait(device)
        seconds = (time.perf_counter() - start) / repeats
        useful = useful_operations(self.world, source, tokens, self.item_llm.config)
        run_tokens = int(source.encoder.text_tokens(source.lengths()[tokens.cpu()]).sum())
        return {
            "name": variant.name,
            "seconds": round(seconds, 4),
            "users_per_second": round(len(self.world.events) / seconds, 3),
            "texts": len(tokens),
            "text_tokens": run_tokens,
            "text_tokens_per_second": round(run_tokens / seconds),
            "useful_tflop": round(useful / 1e12, 4),
            "share_of_matmul_rate": round(useful / seconds / self.rate, 4),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)
            if device.type == "cuda"
            else None,
            "plan": str(source.plan),
            "loss": round(float(loss), 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny models and batch, for a CPU")
    parser.add_argument("--out", type=Path, default=Path("end_to_end.json"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--negatives", type=int, default=512)
    parser.add_argument("--catalogue", type=int, default=100_000)
    parser.add_argument("--chunk-tokens", type=int, default=12_288)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=7.0, help="start no variant after this long")
    parser.add_argument("--only", nargs="*", help="names of variants")
    args = parser.parse_args()
    began, device = time.perf_counter(), hardware.pick_device("cpu" if args.tiny else args.device)
    bench = Bench(args, device)
    lengths = bench.world.lengths
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": hardware.command_line(),
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "matmul_tflops": round(bench.rate / 1e12, 2),
        "packed": bench.packed.backbone.packed or bench.packed.backbone.reason,
        "varlen_kernel": packed_attention.varlen_works(0) if device.type == "cuda" else False,
        "least_cosine_to_padded": round(bench.check(), 5),
        "users": len(lengths),
        "events": int(lengths.sum()),
        "mean_text": round(float(bench.world.texts.lengths[1:].double().mean()) + PROMPT, 1),
        "variants": [],
        "failed": {},
    }
    print(json.dumps(result, indent=1), flush=True)
    order = sorted(VARIANTS, key=lambda v: not v.name.startswith(("ours", "plain")))  # what matters first
    for variant in order:
        if (args.only and variant.name not in args.only) or time.perf_counter() - began > 60 * args.minutes:
            result["failed"][variant.name] = "left out"
            continue
        try:
            row = bench.run(variant)
        except Exception as err:  # one way's failure is a result, not the end of the others
            result["failed"][variant.name] = f"{type(err).__name__}: {str(err)[:300]}"
            print(f"{variant.name}: {result['failed'][variant.name]}", flush=True)
            for p in [*bench.item_llm.parameters(), *bench.user.parameters()]:
                p.grad = None
            hardware.release_memory()
            continue
        result["variants"].append(row)
        print(
            f"{row['name']:28} {row['seconds']:8.3f} s  {row['users_per_second']:8.2f} users/s  "
            f"{row['texts']:5} texts {row['text_tokens']:7} tokens  useful {row['share_of_matmul_rate']:.1%}  "
            f"{row['peak_gib']} GiB  {row['plan']}",
            flush=True,
        )
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        hardware.release_memory()
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{time.perf_counter() - began:.0f} s in all", flush=True)


if __name__ == "__main__":
    told(main)

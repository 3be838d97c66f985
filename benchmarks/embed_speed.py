"""Items a second of an item LLM: one text at a time, plain sorted batches of transformers, hllm padded and in packs.

    python benchmarks/embed_speed.py DATASET --model minilm --out benchmarks/results/embed_speed_cpu.json
    python benchmarks/embed_speed.py --shape tinyllama --texts ml-1m --device cuda   # random weights, no files
    python benchmarks/embed_speed.py DATASET --write-texts texts.json                # for a machine without polars
    python benchmarks/embed_speed.py --model DIR --texts texts.json --draw 100000 --device cuda

Every way encodes the same texts in the same process, in turn, `--repeats` times after a warm-up; the best
time of each is taken. `tokens` are those of the texts as the model reads them, prompt included; the padding
share is of the tokens that the plain way computes. On a GPU the useful share is 2 x weights of the blocks x tokens
that must be run (distinct texts, the shared prefix once) a second, of what a square product in bf16 reaches here.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from told import told

from hllm import hardware
from hllm.items.encoders.backbones import DTYPES, Backbone, hidden_size, load_backbone
from hllm.items.encoders.packs import PackedLanguageModelEncoder
from hllm.items.store.batches import Chunks, one_ahead, planned_batches
from hllm.text.template import OFFICIAL_PROMPT

# width, width of the feed-forward, layers, heads, heads of keys and values, vocabulary
SHAPES = {"tinyllama": (2048, 5632, 22, 32, 4, 32000), "smollm2-135m": (576, 1536, 30, 9, 3, 49152)}
_NAMES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size",
)  # fmt: skip
WARM_UP = 8  # one text in so many is encoded before anything is timed
TOKENISING: dict[int, float] = {}  # least seconds that tokenising so many texts first took
PREFIX = 10  # tokens of the official prompt


class Numbers:
    """A tokenizer of texts that are token ids written out, for models without files."""

    unk_token_id, pad_token_id, all_special_ids, truncation_side = None, 0, (0,), "right"

    def __call__(self, texts: list[str], truncation: bool = False, max_length: int = 0, **_: Any) -> Any:
        ids = [[int(word) for word in text.split()] for text in texts]
        return {"input_ids": [row[:max_length] for row in ids] if truncation else ids}


def random_texts(kind: str, vocab: int) -> list[str]:
    """Texts of the number and lengths of ML-1M's titles and genres, or 100,000 of long-tailed length."""
    draw = np.random.default_rng(0)
    if kind == "ml-1m":
        lengths = np.clip(draw.normal(27.2 - PREFIX, 5, 3883).round(), 5, 60)
    else:
        lengths = np.clip(draw.lognormal(4.4, 0.8, 100_000).round(), 5, 1000)
    head = " ".join(str(i) for i in range(3, 3 + PREFIX))
    return [f"{head} " + " ".join(map(str, draw.integers(20, vocab, int(n)))) for n in lengths]


def texts_of(options: argparse.Namespace) -> list[str]:
    """Distinct texts of a data set, or of a file of them; `--draw`: of long-tailed length, of the words in these."""
    from hllm.data.dataset import Dataset
    from hllm.items.store.request import make_request

    if options.dataset:
        data = Dataset.load(options.dataset)
        request = make_request(data.meta["text_fields"], options.model, options.pooling, None, None)
        texts = sorted({text for text in request.template.render_all(data.items) if text is not None})
    else:
        texts = json.loads(Path(options.texts).read_text())
    if not options.draw:
        return texts
    draw = np.random.default_rng(0)
    words = np.array(" ".join(text.removeprefix(OFFICIAL_PROMPT) for text in texts).split())
    lengths = np.clip(draw.lognormal(4.2, 0.8, options.draw).round(), 4, 800).astype(int)
    return [OFFICIAL_PROMPT + " ".join(draw.choice(words, n)) for n in lengths]


def make(options: argparse.Namespace, plainly: bool = False) -> tuple[Backbone, list[str], str]:
    """The model, the texts and their prompt; `plainly` in the precision of the plain way."""
    device, precision = hardware.pick_device(options.device), options.precision
    precision = options.plain_precision if plainly else precision
    if options.shape:
        from transformers import AutoTokenizer, LlamaConfig, LlamaModel

        sizes = dict(zip(_NAMES, SHAPES[options.shape], strict=True))
        if options.tokenizer:  # its ids need rows of the table
            sizes["vocab_size"] = max(
                sizes["vocab_size"], len(AutoTokenizer.from_pretrained(options.tokenizer))
            )
        config = LlamaConfig(**sizes, max_position_embeddings=2048)
        torch.manual_seed(0)
        with device:
            model = LlamaModel(config).to(DTYPES[precision]).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer) if options.tokenizer else Numbers()
        backbone = Backbone(model, tokenizer, device, hidden_size(config), 0, 2048, options.shape)
        if options.tokenizer:
            return backbone, texts_of(options), OFFICIAL_PROMPT
        return backbone, random_texts(options.texts, config.vocab_size), ""
    from hllm.items.encoders.hub import find_model
    from hllm.items.encoders.names import canonical

    found = find_model(canonical(options.model))
    backbone = load_backbone(found.path, precision, device, name=options.model)
    return backbone, texts_of(options), OFFICIAL_PROMPT


@torch.inference_mode()
def plain(backbone: Backbone, texts: list[str], pooling: str, size: int, limit: int = 256) -> tuple[int, int]:
    """transformers' own way: sorted by length, padded, tokenised a batch at a time. Real and padded tokens."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    real = computed = 0
    for first in range(0, len(order), size):
        ids = backbone.tokenizer(
            [texts[i] for i in order[first : first + size]],
            truncation=True,
            max_length=min(limit, backbone.max_length),
        )
        rows = ids["input_ids"]
        width = max(map(len, rows))
        inputs = torch.tensor([row + [backbone.pad_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        mask = mask.to(backbone.device)
        states = backbone.model(input_ids=inputs.to(backbone.device), attention_mask=mask).last_hidden_state
        if pooling == "mean":
            vectors = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        else:
            vectors = states[torch.arange(len(rows)), mask.sum(1) - 1]
        vectors.float().cpu()
        real, computed = real + sum(map(len, rows)), computed + inputs.numel()
    return real, computed


def prepared(
    encoder: PackedLanguageModelEncoder, texts: list[str], ahead: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and lengths of what is tokenised at once: chunks, the next beside the model, or every text first."""
    if ahead:
        chunks = Chunks(encoder, texts, np.ones(len(texts), dtype=bool))
        for rows in chunks:
            yield rows, chunks.lengths[rows]
        return
    start = time.perf_counter()
    lengths = encoder.prepare(texts)
    took, known = time.perf_counter() - start, TOKENISING.get(len(texts))
    TOKENISING[len(texts)] = min(took, known or took)
    yield np.arange(len(texts)), lengths


def ours(encoder: PackedLanguageModelEncoder, texts: list[str], size: int, ahead: bool = True) -> np.ndarray:
    """hllm's way, tokenising included: vectors float32 (n, d)."""
    out = np.zeros((len(texts), encoder.dim), dtype=np.float32)
    for part, lengths in prepared(encoder, texts, ahead):
        batches = planned_batches(lengths, np.ones(len(part), dtype=bool), size, budget=encoder.budget)
        for rows, vectors in one_ahead(encoder, batches):
            out[part[rows]] = vectors
    return out


def ways(options: argparse.Namespace) -> dict[str, Callable[[list[str]], Any]]:
    """A call of each way with texts. Packed attention is a setting of the model, so that way has a model of its own."""
    backbone, texts, prompt = make(options)
    texts = texts[:: max(1, len(texts) // options.limit)] if options.limit else texts
    options.backbone, options.texts_read = backbone, texts
    padded, packed = (
        PackedLanguageModelEncoder(model, options.pooling, prompt, options.max_tokens)
        for model in (backbone, make(options)[0])
    )
    options.reason = packed.try_packs()
    packed.budget = options.pack_tokens or packed.budget
    options.packed = packed
    plain_backbone = backbone if options.plain_precision == options.precision else make(options, True)[0]
    calls = {
        "plain sorted batches": lambda some: plain(
            plain_backbone, some, options.pooling, options.batch_size, options.max_tokens
        ),
        "hllm padded": lambda some: ours(padded, some, options.batch_size),
    }
    if options.alone:
        calls["one at a time"] = lambda some: plain(backbone, some[: options.alone], options.pooling, 1)
    if not options.reason:
        calls["hllm packed"] = lambda some: ours(packed, some, options.batch_size)
        calls["tokenised first"] = lambda some: ours(packed, some, options.batch_size, ahead=False)
        few = texts[:: max(1, len(texts) // 500)]
        one, other = (ours(encoder, few, options.batch_size) for encoder in (padded, packed))
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        options.least_cosine = float(((one * other).sum(1) / norms).min())
    return {name: call for name, call in calls.items() if options.ways is None or name in options.ways}


def counted(encoder: PackedLanguageModelEncoder, texts: list[str], size: int) -> tuple[int, int, int]:
    """Tokens that must be run (of the distinct texts, the prefix once), tokens of all texts, and these padded in
    sorted batches of `size`."""
    lengths = encoder.prepare(sorted(set(texts)))
    prefix = len(encoder.packed.prefix) if encoder.packed else 0
    falling = np.sort(encoder.prepare(texts) if len(lengths) < len(texts) else lengths)[::-1]
    padded = sum(int(falling[i]) * len(falling[i : i + size]) for i in range(0, len(falling), size))
    return int(lengths.sum()) - prefix * (len(lengths) - 1), int(falling.sum()), padded


def matmul_rate(device: torch.device, size: int = 8192) -> float:
    """Best Tflop/s of a square product in bf16."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / 4)
    return 2 * size**3 / min(times) / 1e12


def best(calls: dict[str, Callable[[list[str]], Any]], texts: list[str], repeats: int) -> dict[str, float]:
    """Seconds of the fastest of `repeats` rounds of each call, after one of some texts; the calls take turns.

    One text at a time, which takes a minute, is run in the first round alone."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats + 1):
        for name, call in calls.items():
            if i > 1 and name == "one at a time":
                continue
            start = time.perf_counter()
            call(texts if i else texts[::WARM_UP])
            if i:
                times[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset", nargs="?", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument(
        "--texts", default="ml-1m", help="ml-1m or long, which are random; or a JSON file of texts"
    )
    parser.add_argument(
        "--draw", type=int, help="texts of long-tailed length to make of the words of the others"
    )
    parser.add_argument(
        "--write-texts", type=Path, metavar="FILE", help="write the data set's texts, and do no more"
    )
    parser.add_argument(
        "--tokenizer", help="folder of a --shape's tokenizer; else texts are written as numbers"
    )
    parser.add_argument("--pooling", default="mean", choices=("mean", "last"))
    parser.add_argument("--precision", default="bf16", choices=DTYPES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pack-tokens", type=int, help="else as hllm embed does")
    parser.add_argument("--plain-precision", choices=DTYPES, help="of the plain way; else the same")
    parser.add_argument("--alone", type=int, default=0, help="texts that are also encoded one at a time")
    parser.add_argument("--ways", nargs="*", help="those of the ways to run, by name")
    parser.add_argument("--limit", type=int, help="texts to take, evenly")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.plain_precision = options.plain_precision or options.precision
    options.reason, options.least_cosine = "", None
    options.max_tokens = 1024 if options.texts == "long" or options.draw else 256  # long tails are read whole
    if options.write_texts:
        options.write_texts.write_text(json.dumps(texts_of(options)))
        return
    calls = ways(options)
    seconds = best(calls, options.texts_read, options.repeats)
    backbone, texts = options.backbone, options.texts_read
    first, alone = seconds.get("plain sorted batches"), seconds.pop("one at a time", None)
    blocks = sum(p.numel() for name, p in backbone.model.named_parameters() if "embed" not in name)
    needed, real, computed = counted(options.packed, texts, options.batch_size)
    rate = matmul_rate(backbone.device) if backbone.device.type == "cuda" else None
    result = SimpleNamespace(
        model=options.shape or options.model,
        precision=options.precision,
        device=str(backbone.device),
        hardware=hardware.describe_hardware(),
        threads=torch.get_num_threads(),
        texts=len(texts),
        tokens=real,
        padding_share=1 - real / computed,
        least_cosine_packed_padded=options.least_cosine,
        why_not_packed=options.reason,
        written_out=options.packed.packed is not None and options.packed.packed.backbone.fast is not None,
        plain_precision=options.plain_precision,
        pack_tokens=options.packed.budget,
        needed_tokens=needed,
        tokenising_seconds=TOKENISING.get(len(texts)),
        measured_bf16_tflops=rate,
        one_at_a_time_seconds=alone and alone * len(texts) / min(options.alone, len(texts)),
        one_at_a_time_texts=options.alone,
        command=hardware.command_line(),
        versions=hardware.describe_versions(),
        date=datetime.date.today().isoformat(),
        ways={
            name: {
                "seconds": s,
                "items_per_second": len(texts) / s,
                "tokens_per_second": real / s,
                "ratio": first and first / s,
                "useful_share": rate and 2 * blocks * needed / s / 1e12 / rate,
            }
            for name, s in seconds.items()
        },
    )
    for name, row in result.ways.items():
        print(
            f"{name:22} {row['seconds']:8.3f} s {row['items_per_second']:9.0f} items/s {row['ratio'] or 0:6.2f} x"
            + (f", useful share {row['useful_share']:.1%}" if rate else "")
        )
    if alone:
        print(f"one at a time, from {options.alone} texts: {result.one_at_a_time_seconds:.1f} s")
    print(
        f"{real:,} tokens, {needed:,} needed, padding {result.padding_share:.1%}, least cosine {options.least_cosine}"
    )
    if result.tokenising_seconds:
        share = result.tokenising_seconds / seconds["tokenised first"]
        print(f"where every text is tokenised first, that takes {share:.2%} of the time")
    if options.out:
        known = json.loads(options.out.read_text()) if options.out.exists() else []
        options.out.write_text(json.dumps([*known, vars(result)], indent=1) + "\n")


if __name__ == "__main__":
    told(main)

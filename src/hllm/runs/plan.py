"""What a training would cost, before it is started: tokens, operations, memory, hours, money.

Counts come from the dataset and the configuration: the planned batches, the distinct items of some of them, the length
of the items' texts. Speeds come from tables below: a GPU's peak, and the share of it that this kind of work was
measured to sustain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.errors import ConfigError, unknown
from hllm.items.encoders.registry import BACKBONES, Known
from hllm.settings import heads_of
from hllm.train.config import STRATEGIES, chosen

if TYPE_CHECKING:
    from hllm.config import Config
    from hllm.data.dataset import Dataset

GIB = 2**30
SAMPLED_BATCHES = 4  # whose distinct items are counted
CHARACTERS_A_TOKEN = 4.0  # of English text, about
VOCABULARY = 32_000  # rows of a language model's embedding, where nothing else is known


@dataclass(frozen=True)
class GPU:
    """Peaks by the makers' data sheets.

    teraflops  dense bf16 products, 10^12 operations a second
    memory     GiB
    bandwidth  of its memory, 10^12 bytes a second
    link       to the other GPUs of its host, 10^9 bytes a second, one direction
    """

    teraflops: float
    memory: float
    bandwidth: float
    link: float


GPUS = {
    "h100": GPU(989, 79, 3.35, 450),  # SXM5, NVLink 4
    "h200": GPU(989, 139, 4.8, 450),
    "a100": GPU(312, 79, 2.04, 300),  # SXM4 80 GB, NVLink 3
    "l40s": GPU(362, 44, 0.864, 32),  # PCIe 4
    "4090": GPU(165, 23, 1.01, 32),
}

# Share of the peak that the layers of a language model sustain in packs, forward and backward, what is run again
# counted: 881.6 useful Tflop a step, a third more with the item LLM's second forward pass, in 3.91 s
# (benchmarks/results/end_to_end_step_h100.json, not compiled).
LLM_SHARE = 0.29
# Bytes that a token's graph keeps a layer, for each of the model's hidden numbers: 50.4 GiB of a step whose weights
# and optimiser take 30.9, at 8,192 text tokens and 960 events (benchmarks/results/parallel_step_h100x2.json).
GRAPH_BYTES = 48
# Our own user models are bound by their many small kernels: nanoseconds a token, layer and number of its width, and
# picoseconds a token, layer, head and slot of its row, on an H100, as a captured step
# (benchmarks/results/core_h100.json for a window of 200, step_h100.json's ratio for 800). Elsewhere they go by the
# memory's bandwidth.
SMALL_NS, SMALL_ROW_PS = 0.50, 14.0
# A process starts, reads, captures its step and evaluates: seconds of a training that are none of its steps.
START = 5.0
# Bytes a second at which one gradient is averaged, as a share of the link's.
LINK_SHARE = 0.6


@dataclass(frozen=True)
class Shape:
    """A model: trained weights of its layers, and what a token costs beside them.

    weights   of the layers; `table` of the embedding, which takes memory but no products
    trained   weights that are trained
    """

    name: str
    weights: float
    table: float
    dim: int
    layers: int
    trained: float

    def operations(self, tokens: float, length: float) -> float:
        """Forward and backward of `tokens` in sequences of `length` on average: 6 a weight, and causal attention."""
        return 6 * self.weights * tokens + 6 * self.layers * self.dim * tokens * length


@dataclass(frozen=True)
class Work:
    """What a training consists of.

    targets      events to predict in an epoch; `events` of a batch
    texts        distinct items that a step encodes by an item LLM; 0 where their vectors are there
    text_tokens  of one of these texts
    classes      items of the loss
    """

    targets: int
    steps: int
    epochs: int
    events: float
    length: float
    texts: float
    text_tokens: float
    classes: int
    negatives: int


@dataclass(frozen=True)
class Memory:
    """GiB of one GPU under a strategy."""

    strategy: str
    weights: float
    gradients: float
    optimiser: float
    activations: float
    fits: bool

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimiser + self.activations


@dataclass(frozen=True)
class Plan:
    """The answer of `plan`; times in seconds, memory in GiB."""

    gpu: str
    gpus: int
    strategy: str
    work: Work
    models: list[Shape]
    useful_teraflop: float  # of a step, on all GPUs
    step: float
    parts: dict[str, float]  # seconds of a step, by what takes them
    bottleneck: str
    hours: float
    memory: list[Memory]
    cost: float | None = None
    assumptions: list[str] = field(default_factory=list)


def plan(
    data: Dataset, config: Config, gpu: str = "h100", gpus: int = 1, strategy: str = "ddp",
    price: float | None = None,
) -> Plan:  # fmt: skip
    """What training `config` on `data` takes. `price`: of a GPU's hour.

    Raises ConfigError for an unknown GPU or strategy, or a model whose shape cannot be told.
    """
    if gpu not in GPUS:
        raise ConfigError(unknown("GPU", gpu, GPUS))
    if strategy not in STRATEGIES:
        raise ConfigError(unknown("strategy", strategy, STRATEGIES))
    work, models = work_of(data, config), shapes_of(config)
    return planned(work, models, config, gpu, gpus, strategy, price)


def planned(
    work: Work, models: Sequence[Shape], config: Config, gpu: str, gpus: int, strategy: str,
    price: float | None = None,
) -> Plan:  # fmt: skip
    """The arithmetic: no data, no device."""
    chip, parts, useful = GPUS[gpu], {}, 0.0
    for model in models:
        item = model.name == "item LLM"
        tokens, length = (
            (work.texts * work.text_tokens, work.text_tokens) if item else (work.events, work.length)
        )
        own = model.operations(tokens, length)
        useful += own
        if is_small(model, config):
            parts[model.name] = (
                small_seconds(model, config, tokens, work.length) * 3.35 / chip.bandwidth / gpus
            )
        else:  # a live item LLM's chunks run forward twice
            parts[model.name] = own * (4 / 3 if item else 1) / (chip.teraflops * 1e12 * LLM_SHARE * gpus)
    loss = 6.0 * work.events * (work.negatives or work.classes) * models[-1].dim
    parts["loss"] = loss / (chip.teraflops * 1e12 * 0.25 * gpus)
    if gpus > 1:
        chunks = max(1, math.ceil(work.texts * work.text_tokens / gpus / config.runtime.item_chunk_tokens))
        sent = sum(
            m.trained * bytes_a_weight(strategy, chunks if m.name == "item LLM" else 1) for m in models
        )
        parts["between GPUs"] = sent * (gpus - 1) / gpus / (chip.link * 1e9 * LINK_SHARE)
    trained = sum(m.trained for m in models)
    parts["optimiser"] = 28 * trained / (chip.bandwidth * 1e12) / (1 if strategy == "ddp" else gpus)
    step = sum(parts.values())
    seconds = START + work.steps * work.epochs * step * (1 + 1 / (3 * work.steps))
    memory = [memory_of(s, work, models, config, chip, gpus) for s in STRATEGIES]
    hours = seconds / 3600
    return Plan(
        gpu, gpus, strategy, work, list(models), useful / 1e12, step, parts, max(parts, key=lambda k: parts[k]),
        hours, memory, None if price is None else hours * gpus * price, assumptions(work, models, config),
    )  # fmt: skip


def bytes_a_weight(strategy: str, passes: int) -> float:
    """Bytes that go over the link for each weight of a model that runs `passes` times forward and backward.

    Whole weights: gradients are reduced and sent back, once. Spread ones: gathered in bf16 for each forward pass, the
    one that is run again, and the backward pass, whose gradients are reduced.
    """
    return 10.0 * passes if strategy in ("fsdp", "zero3") else 8.0


def is_small(model: Shape, config: Config) -> bool:
    """Whether a user model of ours, not a language model."""
    return model.name == "user model" and config.users.user_model != "llm"


def small_seconds(model: Shape, config: Config, tokens: float, length: float) -> float:
    """A step of a user model of ours on an H100."""
    heads = heads_of(model.dim, config.users.n_heads)
    window = config.training.max_len if isinstance(config.training.max_len, int) else length
    row = max(16.0, float(window))
    return model.layers * tokens * (model.dim * SMALL_NS * 1e-9 + heads * row * SMALL_ROW_PS * 1e-12)


def memory_of(
    strategy: str, work: Work, models: Sequence[Shape], config: Config, chip: GPU, gpus: int
) -> Memory:
    """Weights, gradients and AdamW's two moments in float32, and the graphs of a step."""
    spread = {"ddp": (1, 1, 1), "zero1": (1, 1, gpus), "zero2": (1, gpus, gpus)}.get(strategy, (gpus,) * 3)
    held = sum(m.weights + m.table for m in models)
    trained = sum(m.trained for m in models)
    activations = 0.0
    for model in models:
        if model.name == "item LLM":  # a chunk at a time
            tokens = min(config.runtime.item_chunk_tokens, work.texts * work.text_tokens / gpus)
        else:
            tokens = work.events / gpus
        activations += tokens * model.layers * model.dim * GRAPH_BYTES
    columns = min(work.negatives or work.classes, 65_536)
    activations += 3 * 4 * min(work.events / gpus * columns, 2**25)
    weights, gradients, optimiser = (
        4 * n / by / GIB for n, by in zip((held, trained, 2 * trained), spread, strict=True)
    )
    total = weights + gradients + optimiser + activations / GIB
    return Memory(strategy, weights, gradients, optimiser, activations / GIB, total <= chip.memory)


def work_of(data: Dataset, config: Config) -> Work:
    """Batches as they are planned, and the distinct items of some of them."""
    from hllm.data.batches.training import TrainLoader
    from hllm.evaluate.evaluation import parse_max_len
    from hllm.runs.settle import settled

    config = settled(data, config)
    training, objective = config.training, config.objective
    histories, counts = data.train_histories(), data.train_counts()
    loader = TrainLoader(
        histories, parse_max_len(training.max_len), chosen(training.batch_tokens), training.seed, "cpu",
        training.windows, training.passes,
    )  # fmt: skip
    epoch = loader.plan(0)
    if not len(epoch):
        raise ConfigError(f"{data.meta['name']} has no batch to train on; prepare it with weaker filters")
    lengths = epoch.windows.lengths - 1
    classes = int(np.count_nonzero(counts))
    sampled = objective.loss == "sampled"
    negatives = (objective.n_negatives or 512) if objective.loss in ("sampled", "in_batch") else 0
    texts = tokens = 0.0
    if config.items.live:
        spaced = np.linspace(0, len(epoch) - 1, min(len(epoch), SAMPLED_BATCHES)).astype(int)
        rng, found = np.random.default_rng(0), []
        for i in spaced:
            batch = loader.assemble(epoch.windows.take(epoch.slices[i]))
            items = np.union1d(batch.tokens.numpy(), batch.targets.numpy())
            if sampled:
                items = np.union1d(items, rng.integers(1, classes + 1, negatives))
            found.append(len(items))
        whole = objective.loss in ("cross_entropy", "nce")
        texts, tokens = float(classes if whole else np.mean(found)), text_tokens(data, config)
    events = float(lengths.sum()) / len(epoch)
    return Work(
        int(lengths.sum()), len(epoch), chosen(training.epochs), events, float(lengths.mean()), texts, tokens,
        classes, negatives,
    )  # fmt: skip


def text_tokens(data: Dataset, config: Config) -> float:
    """Tokens of an item's text on average, by its characters: no tokenizer is at hand."""
    fields = config.items.text_fields or [n for n in data.items.columns if n != "item_id"]
    columns = [data.items[name].cast(str) for name in fields if name in data.items.columns]
    if not columns:
        return 0.0
    lengths = sum(column.str.len_chars().fill_null(0) for column in columns)
    most = config.items.max_tokens or 256
    return float(np.minimum(np.asarray(lengths) / CHARACTERS_A_TOKEN + 4 * len(columns), most).mean())


def shapes_of(config: Config) -> list[Shape]:
    """The models that a step runs, the user model last."""
    found = []
    if config.items.live:
        assert config.items.item_llm is not None
        share = 1.0 if config.items.train == "full" else 0.01
        found.append(_llm("item LLM", config.items.item_llm, share))
    users = config.users
    if users.user_model == "llm" and users.user_llm is not None:
        found.append(_llm("user LLM", users.user_llm, 1.0))
        return found
    dim = users.d_model or (found[-1].dim if found else 576)
    ffn = users.ffn_hidden or -(-8 * dim // 3 // 32) * 32
    weights = users.n_layers * (5.0 * dim * dim + 3 * dim * ffn)
    name = "user LLM" if users.user_model == "llm" else "user model"
    found.append(Shape(name, weights, 0.0, dim, users.n_layers, weights))
    return found


def _llm(name: str, model: str, share: float) -> Shape:
    """A language model by its short name, or by the configuration in its folder; `share` of it is trained."""
    from pathlib import Path

    from hllm.artifacts import read_json

    known: Known | None = BACKBONES.get(model)
    if known is not None:
        table = min(VOCABULARY * known.dim, 0.5e6 * known.parameters)
        weights = 1e6 * known.parameters - table
        return Shape(name, weights, table, known.dim, known.layers, share * (weights + table))
    file = Path(model) / "config.json"
    if not file.is_file():
        raise ConfigError(
            f"the size of {name} {model!r} is not known here; give a short name (hllm embed --list) or a model folder"
        )
    given: dict[str, Any] = read_json(file)
    dim, layers = int(given.get("hidden_size", 0)), int(given.get("num_hidden_layers", 0))
    heads = int(given.get("num_attention_heads", 1))
    kv = dim * int(given.get("num_key_value_heads", heads)) // heads
    weights = float(
        layers * (2 * dim * dim + 2 * dim * kv + 3 * dim * int(given.get("intermediate_size", 4 * dim)))
    )
    table = float(dim * int(given.get("vocab_size", VOCABULARY)))
    if not weights or not math.isfinite(weights):
        raise ConfigError(f"{file} does not tell hidden_size and num_hidden_layers")
    return Shape(name, weights, table, dim, layers, share * (weights + table))


def assumptions(work: Work, models: Sequence[Shape], config: Config) -> list[str]:
    """What the figures rest on, a line each."""
    said = [f"float32 weights and AdamW, products in bf16 at {LLM_SHARE:.0%} of the peak in language models"]
    if work.texts:
        said += [
            f"texts of {work.text_tokens:.0f} tokens, by {CHARACTERS_A_TOKEN:g} characters a token",
            f"{work.texts:,.0f} distinct texts a step, from {SAMPLED_BATCHES} batches; each runs forward twice",
        ]
    if is_small(models[-1], config):
        said.append("the user model's step as a captured graph, without compiled blocks")
    return [*said, "validation costs a third of an epoch's user half, with every epoch counted once"]

"""Presets `rechub` and `rechub-doc` through the packed engine against their padded twins in hllm.compat.

    hllm embed DATASET --pooling last
    python benchmarks/rechub_presets.py DATASET --device cuda
    python benchmarks/rechub_presets.py DATASET --width 64         a CPU, in about 20 minutes

One epoch each over the same targets: every training event but a user's first. The twin reads one
padded window per target, as torch-rechub does (batches of 64, its own loader), the packed engine each
event once a pass (`passes`). Both are scored on the test events under hllm's protocol, seen items filtered
and kept; "padded" is the packed engine's weights in the padded model, whose real events attend to padding.
`--width N` reduces the item vectors to their first N principal directions (not centred), which keeps
their inner products and makes both sides cheaper.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from told import told
from torch import Tensor

from hllm import hardware
from hllm.artifacts import write_json
from hllm.compat.rechub import HLLMModel, SeqTrainer, SequenceDataGenerator
from hllm.compat.rechub.states import State
from hllm.compat.rechub.windows import leave_last_out
from hllm.config import Config, load_config
from hllm.data.dataset import Dataset
from hllm.evaluate.evaluation import evaluate
from hllm.evaluate.metrics import Metrics
from hllm.items.embed import load_embeddings
from hllm.items.embeddings import ItemEmbeddings
from hllm.models.hllm import Network
from hllm.models.rechub_weights import rechub_weights
from hllm.packing import Batch, segment_ids
from hllm.runs.train import train_network
from hllm.settings import heads_of

METRICS = ("ndcg@10", "hr@10")


class TwinRanker(torch.nn.Module):
    """The padded model as a ranker: windows padded on the left, the last position read."""

    def __init__(self, model: HLLMModel) -> None:
        super().__init__()
        self.model = model.eval()

    @torch.no_grad()
    def query(self, batch: Batch) -> Tensor:
        length = self.model.max_seq_len
        owner = segment_ids(batch.offsets, batch.n_tokens)
        ends = batch.offsets[1:].long()
        place = length - (ends[owner] - torch.arange(batch.n_tokens, device=owner.device))
        tokens = torch.zeros(batch.n_users, length, dtype=torch.long, device=owner.device)
        seconds = torch.zeros_like(tokens)
        tokens[owner, place] = batch.tokens
        seconds[owner, place] = batch.times[ends - 1][owner] - batch.times
        return self.model.encode(tokens, seconds)[:, -1] / self.model.temperature

    @torch.no_grad()
    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        return query @ self.model.item_embeddings[tokens].T


def train_twin(
    data: Dataset, config: Config, embeddings: ItemEmbeddings, device: str, batch_size: int
) -> tuple[TwinRanker, float]:
    """One epoch of the padded twin with torch-rechub's optimiser; the ranker and its seconds."""
    torch.manual_seed(config.training.seed)
    vectors = torch.from_numpy(np.array(embeddings.vectors))
    length, state = int(config.training.max_len), state_of(config)
    # Times in seconds, and only as many targets as training has: what is held out is left out here too.
    windows = leave_last_out(
        np.asarray(data.tokens), np.asarray(data.times), np.asarray(data.offsets), length
    )["train"].arrays()
    order = ("seq_tokens", "seq_positions", "targets", "seq_time_diffs")
    loader = SequenceDataGenerator(*(windows[name] for name in order)).generate_dataloader(batch_size)[0]
    width = vectors.shape[1]
    model = HLLMModel(
        vectors, len(vectors), width, heads_of(width, config.users.n_heads), config.users.n_layers, length,
        config.users.dropout, temperature=config.scorer.temperature, state=state,
    )  # fmt: skip
    trainer = SeqTrainer(
        model,
        optimizer_params={"lr": config.training.learning_rate, "weight_decay": config.training.weight_decay},
        device=device,
        loss_type="nce",
        loss_params={"temperature": config.objective.loss_temperature, "ignore_index": 0},
        state=state,
    )
    started = time.perf_counter()
    trainer.train_one_epoch(loader)
    if device == "cuda":
        torch.cuda.synchronize()
    return TwinRanker(model), time.perf_counter() - started


def padded(network: Network, config: Config) -> HLLMModel:
    """The packed network's weights in the padded model: what attention to padding changes."""
    weights = rechub_weights(network)
    n, width = weights["item_embeddings"].shape
    model = HLLMModel(
        weights["item_embeddings"], n, width, heads_of(width, config.users.n_heads), config.users.n_layers,
        int(config.training.max_len), temperature=config.scorer.temperature, state=state_of(config),
    ).to(weights["item_embeddings"].device)  # fmt: skip
    model.load_state_dict(weights)
    return model


def state_of(config: Config) -> State:
    """The preset's name as the state of torch-rechub that it is."""
    return "rechub-doc" if config.preset == "rechub-doc" else "rechub"


def reduced(embeddings: ItemEmbeddings, width: int | None) -> ItemEmbeddings:
    """The vectors in their first `width` principal directions; inner products stay almost the same."""
    if width is None:
        return embeddings
    vectors = embeddings.vectors.astype(np.float64)
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    return replace(embeddings, vectors=(vectors @ directions[:, ::-1][:, :width]).astype(np.float32))


def compare(ours: list[Metrics], theirs: list[Metrics], metric: str) -> dict[str, float]:
    """Means over users and seeds, and the standard error of the paired difference over users."""
    mine, twin = (np.mean([m.per_user(metric) for m in runs], axis=0) for runs in (ours, theirs))
    difference = mine - twin
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return {
        "packed": float(mine.mean()),
        "twin": float(twin.mean()),
        "difference": float(difference.mean()),
        "standard_error": float(error),
        "equal_or_better": bool(difference.mean() >= -2 * error),
    }


def run(data: Dataset, embeddings: ItemEmbeddings, preset: str, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one preset over all seeds."""
    results: dict[str, dict[str, list[Metrics]]] = {"packed": {}, "padded": {}, "twin": {}}
    seconds: dict[str, list[float]] = {"packed": [], "twin": []}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        settings = {"max_len": args.max_len, "epochs": 1, "seed": seed, **json.loads(args.set)}
        config = load_config(preset, overrides=settings)
        network, fit = train_network(data, config, embeddings, torch.device(args.device), show=False)
        seconds["packed"].append(fit.seconds)
        sides: list[tuple[str, Any]] = [("packed", network), ("padded", TwinRanker(padded(network, config)))]
        if not args.packed_only:
            twin, spent = train_twin(data, config, embeddings, args.device, args.batch_size)
            seconds["twin"].append(spent)
            sides.append(("twin", twin))
        for name, ranker in sides:
            for seen in ("filtered", "kept"):
                found = evaluate(
                    ranker, data, "test", (10,), keep_seen=seen == "kept", max_len=args.max_len, bootstrap=0
                )
                results[name].setdefault(seen, []).append(found)
                print(f"{preset} seed {seed} {name}, seen {seen}: " + ", ".join(
                    f"{m} {found[m]:.4f}" for m in METRICS
                ) + f", {seconds.get(name, [0])[-1]:.1f} s", flush=True)  # fmt: skip
    report: dict[str, Any] = {"seconds": seconds, "settings": config.model_dump()}
    for seen, runs in results["padded"].items():
        report[f"packed_weights_in_padded_model, seen {seen}"] = {
            m: float(np.mean([found[m] for found in runs])) for m in METRICS
        }
    if not args.packed_only:
        for seen, runs in results["packed"].items():
            report[f"seen {seen}"] = {m: compare(runs, results["twin"][seen], m) for m in METRICS}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--item-llm", default="smollm2-135m")
    parser.add_argument("--presets", nargs="+", default=["rechub", "rechub-doc"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--max-len", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64, help="windows in a batch of the twin")
    parser.add_argument("--width", type=int, help="reduce the item vectors to this many directions")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", default="{}", help="settings of the packed side, as JSON")
    parser.add_argument("--packed-only", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = Dataset.load(args.dataset)
    embeddings = reduced(load_embeddings(data, args.item_llm, pooling="last"), args.width)
    document: dict[str, Any] = {
        "benchmark": "rechub_presets",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": hardware.command_line(),
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "threads": torch.get_num_threads(),
        "dataset": {name: data.meta[name] for name in ("name", "fingerprint", "n_users", "n_candidates")},
        "width": embeddings.vectors.shape[1],
        "targets_per_epoch": int(np.maximum(np.diff(data.train_histories().offsets) - 1, 0).sum()),
    }
    for preset in args.presets:
        document[preset] = run(data, embeddings, preset, args)
        if args.out is not None:
            write_json(args.out, document)
    print(json.dumps({preset: document[preset] for preset in args.presets}, indent=1))


if __name__ == "__main__":
    told(main)

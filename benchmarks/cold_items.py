"""What bounds the ranking of items without events: simple scorers, and one that knows what nobody can know.

    hllm data prepare NAME ... --split cold-items --seed S --out DATASET && hllm embed DATASET --item-llm minilm
    python benchmarks/recipe.py pack DATASET --item-llm minilm --out PACKS/NAME-S      for several seeds S
    python benchmarks/cold_items.py PACKS/NAME-* [--json cold.json]

Scorers of the validation and the test users of the packs together, seen items filtered, ties against the scorer:

    random      10 / candidates that are left
    text kNN    mean cosine of the centred text vectors to the last 5 items of the history
    popularity  events of every item, also of those that training never sees, held-out events apart

The last one knows of a new item what only time tells. What it gets, a model that reads texts can hardly be asked for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from told import told

K, LAST = 10, 5


def hits(pack: Path, split: str) -> dict[str, list[float]]:
    """By scorer, for each user of a split whether the target is among the first K; of "random" the chance of it."""
    from hllm.data.dataset import Dataset

    data = Dataset.load(pack / "dataset")
    vectors = np.load(pack / "vectors.npz")["vectors"].astype(np.float64)
    tokens, offsets = np.asarray(data.tokens).astype(np.int64), np.asarray(data.offsets).astype(np.int64)
    n = data.n_catalogue + 1
    vectors -= vectors[data.train_counts() > 0].mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    others = np.ones(len(tokens), dtype=bool)
    for queries in data.queries.values():
        others[np.asarray(queries)] = False
    popularity = np.bincount(tokens[others], minlength=n).astype(np.float64)
    found: dict[str, list[float]] = {"random": [], "text kNN": [], "popularity": []}
    for event in np.asarray(data.queries[split]).tolist():
        first = offsets[np.searchsorted(offsets, event, side="right") - 1]
        history, target = tokens[first:event], tokens[event]
        allowed = np.zeros(n, dtype=bool)
        allowed[1 : data.n_candidates + 1] = True
        allowed[history] = False
        found["random"].append(K / allowed.sum() if allowed[target] else 0.0)
        near = vectors @ vectors[history[-LAST:]].mean(0)
        for name, scores in (("text kNN", near), ("popularity", popularity)):
            rank = ((scores >= scores[target]) & allowed).sum()
            found[name].append(float(allowed[target] and rank <= K))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packs", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = {}
    for split in ("validation", "test"):
        parts = [hits(pack, split) for pack in args.packs]
        for name in parts[0]:
            values = np.concatenate([part[name] for part in parts])
            error = float(values.std() / len(values) ** 0.5)
            rows[f"{split} {name}"] = {
                "hr@10": round(float(values.mean()), 5),
                "standard_error": round(error, 5),
            }
            print(f"{split:10} {name:10} HR@10 {values.mean():.4f} +- {error:.4f}, {len(values)} users")
    if args.json:
        from hllm.artifacts import write_json

        write_json(
            args.json, {"benchmark": "cold_items", "packs": [pack.name for pack in args.packs], "rows": rows}
        )


if __name__ == "__main__":
    told(main)

"""Metrics from ranks, and `Metrics`: what an evaluation found, and under which protocol.

A rank is 1 for the best item; 0 says that the held-out item is not ranked at all. With one
held-out item a user:

    hr@k = recall@k = [rank <= k]      ndcg@k = 1 / log2(rank + 1)      mrr@k = 1 / rank

(the last two where rank <= k, else 0), averaged over users. `evaluate/lists.py` has the forms for
several held-out items.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.arguments import whole
from hllm.artifacts import read_tensors, write_tensors
from hllm.errors import ArtifactError, ConfigError, unknown
from hllm.evaluate.significance import bootstrap_means, interval

if TYPE_CHECKING:
    import polars as pl
    from rich.console import RenderableType

    from hllm.data.dataset import Dataset

DEFAULT_KS = (10, 50, 200)

# Gain of each rank that is within k: float64 of the ranks, which are all at least 1.
GAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hr": np.ones_like,
    "recall": np.ones_like,
    "ndcg": lambda rank: 1 / np.log2(rank + 1),
    "mrr": lambda rank: 1 / rank,
}


def parse_metric(name: str) -> tuple[str, int]:
    """Split `ndcg@10` into its kind and k. Raises ConfigError for anything else."""
    match = re.fullmatch(r"([a-z]+)@([1-9]\d{0,17})", name) if isinstance(name, str) else None
    if match is None or match[1] not in GAINS:
        raise ConfigError(unknown("metric", name, [f"{kind}@10" for kind in GAINS]) + ", with any k")
    return match[1], int(match[2])


def check_k(k: Any) -> int:
    """The number of items `k`. Raises ConfigError unless it is whole (numpy's too) and positive."""
    return whole("k", k)


def check_ks(ks: Any) -> tuple[int, ...]:
    """The cut-offs, one or several, in rising order, each once. Raises ConfigError as `check_k` does."""
    several = isinstance(ks, Iterable) and not isinstance(ks, str | bytes | Mapping)
    checked = {check_k(k) for k in (ks if several else [ks])}
    if not checked:
        raise ConfigError("no cut-off given; for example k=10")
    return tuple(sorted(checked))


def rank_values(ranks: np.ndarray, name: str) -> np.ndarray:
    """Values float64 (n,) of the metric `name` for `ranks` int64 (n,), 0 = not ranked."""
    kind, k = parse_metric(name)
    hit = (ranks >= 1) & (ranks <= k)
    gains = GAINS[kind](np.where(hit, ranks, 1).astype(np.float64))
    return np.where(hit, gains, 0.0)


def metric_names(ks: Sequence[int]) -> list[str]:
    """`hr@10, recall@10, ndcg@10, mrr@10`, and so on for every k."""
    return [f"{kind}@{k}" for k in ks for kind in GAINS]


def summarise(
    ranks: np.ndarray, users: np.ndarray, names: Sequence[str], bootstrap: int = 0, seed: int = 0
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Means over users of each metric, and their 95% intervals (none where `bootstrap` is 0).

    A user with several held-out events counts once, with the mean over them.
    """
    owners = np.unique(users, return_inverse=True)[1]
    if len(owners) and owners.max() + 1 == len(users):
        # One event a user: users of equal rank are alike.
        kinds, counts = np.unique(ranks, return_counts=True)
        values = np.stack([rank_values(kinds, name) for name in names], axis=1)
    else:
        counts = np.ones(int(owners.max(initial=-1)) + 1, dtype=np.int64)
        events = np.bincount(owners)
        values = np.stack(
            [np.bincount(owners, weights=rank_values(ranks, name)) / events for name in names], axis=1
        )
    means = dict(zip(names, (counts @ values / counts.sum()).tolist(), strict=True))
    if not bootstrap:
        return means, {}
    low, high = interval(bootstrap_means(values, counts, bootstrap, seed)).tolist()
    return means, dict(zip(names, zip(low, high, strict=True), strict=True))


@dataclass(frozen=True)
class EvalProtocol:
    """Everything that decides what the numbers mean. Shares are of the queries, from 0 to 1."""

    dataset: str
    fingerprint: str
    split: str
    candidates: str  # "interacted", "catalogue", or how else they were chosen
    n_items: int  # candidates
    seen: str  # "filtered" or "kept"
    n_users: int
    n_targets: int
    tied_share: float  # another candidate has exactly the target's score
    repeated_share: float  # the user met the target before
    query_time: str = "unknown"
    max_len: int | str = "all"
    seeds: tuple[int, ...] = ()
    checkpoint: str = ""  # the rule by which it was chosen, such as "best validation ndcg@10"
    skipped: dict[str, int] = field(default_factory=dict)  # users who could not be evaluated, by reason


@dataclass(frozen=True, eq=False, repr=False)
class Metrics:
    """Result of `evaluate`. `metrics["ndcg@10"]` is a value; printing it shows a table.

    values     metric -> mean over users
    intervals  metric -> 95% bootstrap interval over users
    users, targets, ranks   int64 (Q,): dataset row, held-out token and its rank (0 = not ranked)
    tied       bool (Q,): another candidate has exactly the held-out item's score; None of files of before
    slices     breakdown -> groups of users with their NDCG, see evaluate/slices.py
    """

    name: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    users: np.ndarray
    targets: np.ndarray
    ranks: np.ndarray
    protocol: EvalProtocol
    ks: tuple[int, ...] = DEFAULT_KS
    slices: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tied: np.ndarray | None = None

    def __getitem__(self, name: str) -> float:
        """A value by name. Every k can be asked for: the ranks are kept."""
        if not isinstance(name, str) or name not in self.values:
            return summarise(self.ranks, self.users, [name])[0][name]
        return self.values[name]

    def per_user(self, name: str) -> np.ndarray:
        """Values float64 of one metric, one a user, by rising dataset row."""
        owners = np.unique(self.users, return_inverse=True)[1]
        return np.bincount(owners, weights=rank_values(self.ranks, name)) / np.bincount(owners)

    def shown(self) -> list[str]:
        """The metrics that tables and result lines show; `recall@k` equals `hr@k` here."""
        names = [f"{kind}@{k}" for k in self.ks for kind in ("ndcg", "hr")]
        return [*names[:2], f"mrr@{self.ks[0]}", *names[2:]]

    def result_line(self) -> str:
        """Model, protocol and metrics in one line (protocol.md, "A result line")."""
        p = self.protocol
        events = "" if p.n_targets == p.n_users else f", {p.n_targets:,} targets"
        seeds = ", ".join(map(str, p.seeds))
        parts = [
            self.name or "model",
            f"{p.dataset} {p.fingerprint[:12]}",
            p.split,
            f"candidates {p.candidates}",
            f"seen {p.seen}",
            f"query time {p.query_time}",
            f"{p.n_users:,} users{events}",
            f"{p.n_items:,} items",
            f"seed{'s' * (len(p.seeds) > 1)} {seeds or 'none'}",
            p.checkpoint or "no checkpoint",
            ", ".join(f"{name} {self._with_interval(name)}" for name in self.shown()),
            f"tied {p.tied_share:.2%}",
            f"repeated targets {p.repeated_share:.2%}",
        ]
        return " | ".join(parts)

    def _with_interval(self, name: str) -> str:
        text = f"{self[name]:.4f}"
        if name in self.intervals:
            low, high = self.intervals[name]
            text += f" [{low:.4f}, {high:.4f}]"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the metrics by name, then intervals, sizes, protocol and slices."""
        return {
            **self.values,
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            "n_users": self.protocol.n_users,
            "n_items": self.protocol.n_items,
            "result_line": self.result_line(),
            "protocol": {**asdict(self.protocol), "seeds": list(self.protocol.seeds)},
            "slices": self.slices,
        }

    def to_frame(self) -> pl.DataFrame:
        """A row a metric: `model, split, metric, value, low, high`, the last two the 95% interval or null."""
        import polars as pl

        pairs = [self.intervals.get(name, (None, None)) for name in self.values]
        floats = {
            "value": self.values.values(),
            "low": (low for low, _ in pairs),
            "high": (h for _, h in pairs),
        }
        names = {"model": self.name, "split": self.protocol.split}
        frame = pl.DataFrame(
            {key: pl.Series(list(column), dtype=pl.Float64) for key, column in floats.items()}
        )
        known = [pl.lit(value).alias(key) for key, value in names.items()]
        return frame.select(*known, pl.Series("metric", list(self.values), dtype=pl.String), *floats)

    def ranks_frame(self, dataset: Dataset) -> pl.DataFrame:
        """A row a held-out event: `user_id, item_id, rank` (null: not ranked), `tied`; ids as the user has them."""
        import polars as pl

        ranks = pl.Series("rank", self.ranks, dtype=pl.Int64)
        tied = [None] * len(ranks) if self.tied is None else self.tied
        return pl.DataFrame(
            [
                dataset.users["user_id"].gather(self.users),
                dataset.items["item_id"].gather(self.targets - 1),
                ranks.set(ranks == 0, None),
                pl.Series("tied", tied, dtype=pl.Boolean),
            ]
        )

    def save(self, path: Path | str) -> None:
        """Write the ranks of every user, with everything else, as one safetensors file."""
        import torch

        arrays = {"users": self.users, "targets": self.targets, "ranks": self.ranks}
        arrays |= {} if self.tied is None else {"tied": self.tied}
        header = {**self.to_dict(), "format": "hllm-ranks", "name": self.name, "ks": list(self.ks)}
        write_tensors(path, {key: torch.from_numpy(np.array(a)) for key, a in arrays.items()}, header)

    @classmethod
    def load(cls, path: Path | str) -> Metrics:
        """Read what `save` wrote. Raises ArtifactError for any other file."""
        tensors, header = read_tensors(path)
        if header.get("format") != "hllm-ranks":
            raise ArtifactError(f"{path} holds no ranks; `hllm evaluate RUN` writes them")
        protocol = EvalProtocol(**{**header["protocol"], "seeds": tuple(header["protocol"]["seeds"])})
        return cls(
            name=header["name"],
            values={name: value for name, value in header.items() if "@" in name},
            intervals={name: (pair[0], pair[1]) for name, pair in header["intervals"].items()},
            users=tensors["users"].numpy(),
            targets=tensors["targets"].numpy(),
            ranks=tensors["ranks"].numpy(),
            protocol=protocol,
            ks=tuple(header["ks"]),
            slices=header["slices"],
            tied=tensors["tied"].numpy() if "tied" in tensors else None,
        )

    def __rich__(self) -> RenderableType:
        from hllm.evaluate.tables import table

        return table([self])

    def __str__(self) -> str:
        from hllm.evaluate.tables import text

        return text([self])

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {self[name]:.4f}" for name in self.shown()[:2])
        return f"Metrics({self.name or 'model'} on {self.protocol.dataset} {self.protocol.split}: {shown})"

    def _repr_html_(self) -> str:
        """A small table for notebooks, the result line below."""
        from html import escape

        cells = [f"<tr><th>{name}</th><td>{self._with_interval(name)}</td></tr>" for name in self.shown()]
        caption = f"{self.name or 'model'} on {self.protocol.dataset}, {self.protocol.split}"
        return (
            f"<table><caption>{escape(caption)}</caption>{''.join(cells)}</table>"
            f"<small>{escape(self.result_line())}</small>"
        )


def as_document(
    results: Mapping[str, Metrics],
    baselines: Mapping[str, Mapping[str, Metrics]] | None = None,
    epoch: int | None = None,
) -> dict[str, Any]:
    """The layout of `metrics.json` and `evaluate --json`: a run's own values under its split's name.

    `{"test": {"ndcg@10": ..., "checkpoint": {"epoch": 7, "rule": "best validation ndcg@10"}}, "baselines": {"test":
    {"popularity": {"ndcg@10": ...}}}}`; `epoch` is that of the weights.
    """
    document: dict[str, Any] = {
        split: {**metrics.to_dict(), "checkpoint": {"epoch": epoch, "rule": metrics.protocol.checkpoint}}
        for split, metrics in results.items()
    }
    document["baselines"] = {
        split: {name: metrics.to_dict() for name, metrics in named.items()}
        for split, named in (baselines or {}).items()
    }
    return document

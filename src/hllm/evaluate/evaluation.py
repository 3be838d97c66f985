"""`evaluate`: a ranker, a dataset and a split to `Metrics`, as protocol.md says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hllm.arguments import one_of
from hllm.data.batches.queries import eval_queries
from hllm.errors import ConfigError, DataError
from hllm.evaluate.metrics import DEFAULT_KS, EvalProtocol, Metrics, check_ks, metric_names, summarise
from hllm.evaluate.ranking import (
    BATCH_USERS,
    Ranker,
    RankOptions,
    ScannedBlock,
    TargetRanks,
    candidate_tokens,
    scan,
)
from hllm.evaluate.slices import slices
from hllm.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from hllm.data.batches.queries import Queries
    from hllm.data.dataset import Dataset


def evaluate(
    ranker: Ranker,
    dataset: Dataset,
    split: str = "test",
    ks: int | Iterable[int] = DEFAULT_KS,
    *,
    keep_seen: bool = False,
    candidates: str | Iterable[Any] = "interacted",
    max_len: int | str | None = None,
    device: torch.device | str | None = None,
    bootstrap: int = 1000,
    details: bool = True,
    name: str = "",
    seeds: Sequence[int] = (),
    checkpoint: str = "",
    users: int | None = None,
    sample_seed: int = 0,
    batch_users: int = BATCH_USERS,
    tile_items: int | None = None,
    ranks: Ranks = ALONE,
) -> Metrics:
    """Rank every held-out item of `split` among all candidates and average over users.

    candidates   "interacted" (items with an event), "catalogue", or item ids
    max_len      events of the history that the ranker sees; None or "all" = every one
    device       where batches go; None = where the ranker's weights are
    bootstrap    resamples for the 95% intervals; 0 = none
    details      also coverage@k, popularity@k (mean popularity percentile of what is recommended)
                 and slices. False for the many validations of a training
    seeds, checkpoint   what to say of the model in the result line
    users        rank for a sample of so many users, drawn by `sample_seed`; None = everyone
    ranks        processes that all call this and share its users; each returns the metrics of all

    Raises ConfigError for an unknown split, k or candidates, DataError where nobody can be evaluated,
    HLLMError where scores are not finite.
    """
    ks = check_ks(ks)
    queries = sample_of(_queries(dataset, split), users, sample_seed)
    competing = candidate_tokens(dataset, candidates)
    options = RankOptions(
        candidates=competing,
        keep_seen=keep_seen,
        max_len=parse_max_len(max_len),
        device=device_of(ranker) if device is None else device,
        batch_users=batch_users,
        tile_items=tile_items,
    )
    collected = _Lists(dataset, competing, ks) if details else None
    found = []
    for block in scan(ranker, queries, options, targets=True, k=ks[-1] if details else None, ranks=ranks):
        found.append((block.part.start, _targets(block)))
        if collected is not None:
            collected.add(block)
    parts = [part for _, part in sorted(chain(*ranks.gather(found)), key=lambda pair: pair[0])]
    if collected is not None:
        collected.take_in(ranks)
    positions = np.concatenate([part.ranks for part in parts])
    tied = np.concatenate([part.tied for part in parts])
    values, intervals = summarise(positions, queries.users, metric_names(ks), bootstrap)
    if collected is not None:
        values |= collected.values(len(queries))
    return Metrics(
        name=name or type(ranker).__name__.lower(),
        values=values,
        intervals=intervals,
        users=np.asarray(queries.users),
        targets=np.asarray(queries.targets),
        ranks=positions,
        protocol=EvalProtocol(
            dataset=str(dataset.meta["name"]),
            fingerprint=dataset.fingerprint,
            split=split,
            candidates=candidates if isinstance(candidates, str) else "given",
            n_items=len(competing),
            seen="kept" if keep_seen else "filtered",
            n_users=len(np.unique(queries.users)),
            n_targets=len(queries),
            tied_share=float(tied.mean()),
            repeated_share=float(queries.repeated().mean()),
            max_len="all" if options.max_len is None else options.max_len,
            seeds=tuple(seeds),
            checkpoint=checkpoint,
            skipped=_skipped(dataset, split),
        ),
        ks=ks,
        slices=slices(dataset, queries, positions, bootstrap) if details else {},
        tied=tied,
    )


def parse_max_len(max_len: int | str | None) -> int | None:
    """None for None and "all", a positive number for itself; ConfigError otherwise."""
    if max_len is None or max_len == "all":
        return None
    if isinstance(max_len, bool) or not isinstance(max_len, int) or max_len < 1:
        raise ConfigError(f"max_len={max_len!r}: must be a whole number from 1, or 'all'")
    return max_len


def device_of(ranker: Ranker) -> torch.device:
    """Where a module's weights are; the CPU for anything without weights."""
    if isinstance(ranker, nn.Module):
        for tensor in chain(ranker.parameters(), ranker.buffers()):
            return tensor.device
    return torch.device("cpu")


def sample_of(queries: Queries, n: int | None, seed: int = 0) -> Queries:
    """The queries of `n` users drawn without replacement, in their order; all of them where there are no more."""
    everyone = np.unique(queries.users)
    if n is None or n >= len(everyone):
        return queries
    chosen = np.random.default_rng(seed).choice(everyone, n, replace=False)
    return queries.take(np.flatnonzero(np.isin(queries.users, chosen)))


def _queries(dataset: Dataset, split: str) -> Queries:
    queries = eval_queries(dataset, one_of("split", split, dataset.queries))
    if not len(queries):
        counts = ", ".join(f"{key} {n:,}" for key, n in _skipped(dataset, split).items() if n)
        raise DataError(
            f"nobody to evaluate in split {split!r} of {dataset.meta['name']} "
            f"({counts or 'no held-out events'}); prepare the dataset with another --split or weaker filters"
        )
    return queries


def _skipped(dataset: Dataset, split: str) -> dict[str, int]:
    """Counts of users who could not be asked, as the dataset recorded them."""
    counts = dataset.meta.get("counts", {})
    wanted = ("users_too_short", *(f"{split}_users_{why}" for why in ("too_short", "without_history")))
    return {key: counts[key] for key in wanted if key in counts}


def _targets(block: ScannedBlock) -> TargetRanks:
    assert block.targets is not None
    return block.targets


class _Lists:
    """What the top-k lists say beyond hits, summed up block by block."""

    def __init__(self, dataset: Dataset, candidates: np.ndarray, ks: Sequence[int]) -> None:
        self.ks = ks
        self.n_candidates = len(candidates)
        size = int(candidates.max(initial=0)) + 1
        self.percentile = np.zeros(size)
        self.percentile[candidates] = popularity_percentiles(dataset.train_counts()[candidates])
        self.times = {k: np.zeros(size, dtype=np.int64) for k in ks}  # how often each item is in a top k

    def add(self, block: ScannedBlock) -> None:
        assert block.top is not None
        for k in self.ks:
            tokens = block.top.tokens[block.top.ranks <= k]
            self.times[k] += np.bincount(tokens, minlength=len(self.percentile))

    def take_in(self, ranks: Ranks) -> None:
        """Add what the other processes have counted."""
        if ranks.many:
            parts = ranks.gather(self.times)
            self.times = {k: sum((part[k] for part in parts), np.zeros_like(self.times[k])) for k in self.ks}

    def values(self, n_queries: int) -> dict[str, float]:
        values = {}
        for k in self.ks:
            times = self.times[k]
            values[f"coverage@{k}"] = float((times > 0).sum() / max(1, self.n_candidates))
            values[f"popularity@{k}"] = float(times @ self.percentile / max(1, times.sum()))
        return values


def popularity_percentiles(counts: np.ndarray) -> np.ndarray:
    """Share (0..1) of items that are less popular, equals counting half: float64 for int64 `counts`."""
    if not len(counts):
        return np.zeros(0)
    order = np.sort(counts)
    below = np.searchsorted(order, counts, side="left")
    up_to = np.searchsorted(order, counts, side="right")
    return np.asarray((below + up_to) / (2 * len(counts)))

"""What an encoding would cost, before anything is written: tokens counted, time and memory tried on a few batches."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from hllm import hardware
from hllm.items.store.encode import Job
from hllm.items.store.shards import Store

ENOUGH = 5.0  # seconds of trying
FIRST = 4  # texts of the first try: a large model on a CPU takes seconds a text


@dataclass(frozen=True)
class Estimate:
    """texts, encoded (there already), tokens (of those that are not), longest (text), truncated (of all texts),
    seconds, tokens_per_second (None where nothing is missing), peak_memory and store (bytes)."""

    texts: int
    encoded: int
    tokens: int
    longest: int
    truncated: int
    seconds: float
    tokens_per_second: float | None
    peak_memory: int | None
    store: int


def estimate(job: Job, store: Store) -> Estimate:
    """Tokenise everything and run a few batches, the longest among them; nothing is written."""
    keys = sorted(job.texts)
    wanted = store.find(keys) < 0
    if job.shared is not None:
        wanted &= job.shared.find(keys) < 0
    encoded, width = int((~wanted).sum()), 2 if job.spec.get("store") == "fp16" else 4
    if not wanted.any():
        return Estimate(len(keys), encoded, 0, 0, 0, 0.0, None, None, 0)
    encoder = job.load()
    lengths = encoder.prepare([job.texts[key] for key in keys])
    batches = list(job.batches(encoder, lengths, wanted))
    middle = batches[len(batches) // 2]
    tried = [middle[:FIRST], middle[:FIRST], middle, batches[0], batches[-1]]
    spent = tokens = 0.0
    for i, batch in enumerate(tried):
        start = time.perf_counter()
        encoder.encode(batch)
        took = time.perf_counter() - start
        if i == 0 and took < ENOUGH:  # the first call of a model is slower
            continue
        if i == 2 and took < ENOUGH:  # whole batches say more than a few texts do
            spent = tokens = 0.0
        spent, tokens = spent + took, tokens + float(lengths[batch].sum())
        if spent > ENOUGH or took * len(middle) / len(batch) > 4 * ENOUGH:
            break
    rate, total = tokens / max(spent, 1e-9), int(lengths[wanted].sum())
    return Estimate(
        texts=len(keys),
        encoded=encoded,
        tokens=total,
        longest=int(lengths.max()),
        truncated=int(np.sum(encoder.truncated)),
        seconds=total / rate,
        tokens_per_second=rate,
        peak_memory=hardware.peak_memory(job.device),
        store=int(wanted.sum()) * (width * encoder.dim + 17),
    )

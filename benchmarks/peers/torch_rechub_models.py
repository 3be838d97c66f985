"""torch-rechub's HLLM on frozen item vectors, by the settings of its MovieLens example: 2 layers, windows of 200,
batches of 512 windows, Adam at 1e-3, 5 epochs, or as many steps as the time allows."""

from __future__ import annotations

import contextlib
import io
import time

import numpy as np
import torch
from common import Events, K, Result, main
from torch_rechub.models.generative.hllm import HLLMModel
from torch_rechub.trainers import SeqTrainer
from torch_rechub.utils.data import SequenceDataGenerator

LENGTH, BATCH, EPOCHS, LAYERS = 200, 512, 5, 2
PART = 16  # windows a step on a CPU, where a batch of 512 takes minutes


def windows(events: Events, ends: np.ndarray) -> tuple[np.ndarray, ...]:
    """Padded histories before the events `ends`, as it prepares them: tokens, positions, time gaps (n, LENGTH)."""
    starts = np.searchsorted(events.users, events.users[ends - 1], side="left")
    at = ends[:, None] + np.arange(-LENGTH, 0)
    real = at >= starts[:, None]
    at = np.maximum(at, 0)
    tokens = np.where(real, events.items[at], 0)
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    gaps = np.where(real, events.times[ends - 1][:, None] - events.times[at], 0)
    return tokens.astype(np.int32), positions.astype(np.int32), gaps.astype(np.int64)


def hllm(events: Events) -> Result:
    torch.manual_seed(0)
    vectors = torch.from_numpy(np.load(events.folder / "vectors.npy"))
    width = vectors.shape[1]
    heads = 16 if width >= 2048 else 8 if width >= 512 else 4
    first = np.r_[True, events.users[1:] != events.users[:-1]]
    targets = np.flatnonzero(~first & ~events.held)
    counts = np.bincount(events.users)[events.users]
    targets = targets[counts[targets] >= 3]  # with the test event 4: shorter histories are skipped there
    tokens, positions, gaps = windows(events, targets)
    data = SequenceDataGenerator(tokens, positions, events.items[targets].astype(np.int32), gaps)
    batch = PART if events.device == "cpu" else BATCH
    loader = data.generate_dataloader(batch)[0]
    model = HLLMModel(vectors, len(vectors), width, heads, LAYERS, LENGTH, 0.1)
    trainer = SeqTrainer(
        model, optimizer_params={"lr": 1e-3, "weight_decay": 1e-5}, device=events.device, loss_type="nce",
        loss_params={"temperature": 1.0, "ignore_index": 0},
    )  # fmt: skip
    started, done = time.monotonic(), 0
    while time.monotonic() - started < events.seconds and done < EPOCHS * len(targets):
        for rows in loader:
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar each
                trainer.train_one_epoch([rows])
            done += len(rows[0])
            if time.monotonic() - started >= events.seconds or done >= EPOCHS * len(targets):
                break
    seconds = time.monotonic() - started
    ends = np.searchsorted(events.users, events.test, side="right")
    rows = []
    model.eval()
    for part in np.array_split(np.arange(len(ends)), max(1, len(ends) // 64)):
        inputs = windows(events, ends[part])
        with torch.no_grad():
            given = (
                torch.from_numpy(np.ascontiguousarray(inputs[i])).long().to(events.device) for i in (0, 2)
            )
            scores = model(*given)[:, -1].float().cpu().numpy()
        scores[:, 0] = -np.inf
        for user, values in zip(events.test[part], scores, strict=True):
            a, b = np.searchsorted(events.users, (user, user + 1))
            values[events.items[a:b]] = -np.inf
            values[events.n_items + 1 :] = -np.inf
            best = np.argsort(-values, kind="stable")[:K]
            rows += [(int(user), int(item), rank) for rank, item in enumerate(best, 1)]
    share = done / len(targets)
    note = f"{share:.3g} of {EPOCHS} epochs" + ("" if share >= EPOCHS else ", stopped by the clock")
    if batch != BATCH:
        note += f", batches of {batch}"
    return rows, {
        "fit_seconds": round(seconds, 1),
        "settings": "its MovieLens example's",
        "epochs": share,
        "note": note,
    }


if __name__ == "__main__":
    main({"hllm": hllm})

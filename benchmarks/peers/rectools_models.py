"""RecTools' SASRec and HSTU.

SASRec has its defaults (256 factors, 2 blocks, 4 heads, window 100, full softmax), HSTU the settings of its HSTU
tutorial (50 factors, 2 blocks, 1 head, window 200, 128 negatives, cosine / .05). Both keep the best epoch by their loss
on the validation event and stop after 5 without a better one, as its guide to training does, or when the time is up.
HSTU is told the time of each user's last event to recommend at: that of the event to be predicted is unknown.
"""

from __future__ import annotations

import time
import warnings
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
from common import Events, K, Result, main
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, Timer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.transformers.utils import leave_one_out_mask

EPOCHS = 100
PATIENCE = 5
TUTORIAL = {
    "session_max_len": 200, "lightning_module_kwargs": {"logits_t": 0.05}, "loss": "sampled_softmax",
    "n_negatives": 128, "n_factors": 50, "n_heads": 1, "n_blocks": 2,
}  # fmt: skip


def frame(events: Events) -> pd.DataFrame:
    """Interactions; events of one second stay in their order by nanoseconds."""
    moments = pd.to_datetime(events.times, unit="s").as_unit("ns") + pd.to_timedelta(
        np.arange(len(events.times)), unit="ns"
    )
    columns = {
        Columns.User: events.users,
        Columns.Item: events.items,
        Columns.Weight: 1.0,
        Columns.Datetime: moments,
    }
    return pd.DataFrame(columns)


def trained(events: Events, kind: Any, settings: str, **given: Any) -> Result:
    warnings.simplefilter("ignore")
    seed_everything(0, verbose=False)
    best = ModelCheckpoint(dirpath=events.folder / "best", monitor="val_loss", mode="min")
    timer = Timer(duration=timedelta(seconds=events.seconds), interval="step")
    stop = EarlyStopping(monitor="val_loss", mode="min", patience=PATIENCE)
    accelerator = "gpu" if events.device.startswith("cuda") else "cpu"

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=EPOCHS, accelerator=accelerator, devices=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[best, timer, stop],
        )  # fmt: skip

    table = frame(events)
    model = kind(get_trainer_func=trainer, get_val_mask_func=leave_one_out_mask, deterministic=True, **given)
    started = time.monotonic()
    model.fit(Dataset.construct(table))
    seconds = time.monotonic() - started
    epochs = model.fit_trainer.current_epoch
    if best.best_model_path:
        model.load_weights_from_checkpoint(best.best_model_path)
    options: dict[str, Any] = {}
    if model.require_recommend_context:
        last = table.groupby(Columns.User)[Columns.Datetime].max().loc[events.test] + pd.Timedelta(
            1, unit="ns"
        )
        options["context"] = pd.DataFrame(
            {Columns.User: events.test, Columns.Datetime: last.to_numpy(), Columns.Weight: 1.0}
        )
    recs = model.recommend(
        events.test,
        Dataset.construct(table),
        k=K,
        filter_viewed=True,
        on_unsupported_targets="ignore",
        **options,
    )
    rows = zip(recs[Columns.User], recs[Columns.Item], recs[Columns.Rank], strict=True)
    full = seconds > events.seconds - 1
    note = f"stopped by the clock in epoch {epochs + 1}" if full else f"{epochs} epochs"
    return rows, {"fit_seconds": round(seconds, 1), "settings": settings, "epochs": epochs, "note": note}


def sasrec(events: Events) -> Result:
    return trained(events, SASRecModel, "defaults, best validation loss")


def hstu(events: Events) -> Result:
    return trained(events, HSTUModel, "its tutorial's, best validation loss", **TUTORIAL)


if __name__ == "__main__":
    main({"sasrec": sasrec, "hstu": hstu})

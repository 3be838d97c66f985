"""A run brought up to date: new events and users without training, or trained on from the weights it has."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hllm.config import Config
from hllm.data.extend import Grown, grown, read_events
from hllm.data.tables.frames import to_polars
from hllm.data.tables.schema import ITEM_ID, canonical
from hllm.errors import ConfigError
from hllm.recommend.additions import added_dataset, check_new_items
from hllm.runs.record import RunRecord, new_record
from hllm.runs.train import train_network
from hllm.train.config import chosen

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.dataset import Dataset
    from hllm.items.trained import TrainedLLM
    from hllm.models.hllm import Network

SHARE = 4  # training goes on for this part of the epochs that the run was trained for


@dataclass(frozen=True)
class Updated:
    """What a run has become.

    counts  events, users, items that came; known events; events left out, whose items nobody knows
    """

    network: Network
    config: Config
    data: Dataset
    record: RunRecord
    counts: dict[str, int]


def updated(
    network: Network,
    config: Config,
    data: Dataset,
    record: RunRecord,
    interactions: Any,
    items: Any = None,
    *,
    train: bool = False,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    source: Mapping[str, Any] | None = None,
    progress: bool = True,
    llm: TrainedLLM | None = None,
) -> Updated:
    """The run with new `interactions` in its histories and new `items` in its catalogue. `network` is changed.

    With `train`, it is trained on, from its weights, on old and new events together (rehearsal, against forgetting:
    Robins, 1995), for a quarter of its epochs unless `settings` say otherwise; what its dataset held out stays held
    out, and chooses the weights as before. `source` goes into the lineage. A run without text can take new items by
    training alone. Raises DataError for tables that cannot be used.
    """
    if settings and not train:
        raise ConfigError(f"settings {', '.join(settings)} are for training; give train=True (--train)")
    target = next(iter(network.state_dict().values())).device
    events = read_events(data, interactions)
    data, n_items = _with_items(network, data, record, events, items, train, device, llm)
    found = grown(data, events)
    counts = _counts(found, n_items)
    now = datetime.datetime.now(datetime.UTC).isoformat()
    step = {"parent": record.created, "at": now, "trained": train, **counts, **(source or {})}
    fresh = new_record(found.data, config, None)
    fresh = replace(
        record, dataset=fresh.dataset, command=fresh.command, created=now,
        lineage=[*record.lineage, step],
    )  # fmt: skip
    if train:
        epochs = {"epochs": max(1, chosen(config.training.epochs) // SHARE)}
        config = config.model_copy(update=epochs | dict(settings or {}))
        network, result = train_network(
            found.data, config, None, target, None, False, progress, start=network
        )
        fresh = replace(fresh, hardware=new_record(data, config, None).hardware).finished(result)
    network.eval()
    return Updated(network, config, found.data, fresh, counts)


def _counts(found: Grown, n_items: int) -> dict[str, int]:
    return {
        "events": found.events,
        "users": found.users,
        "items": n_items,
        "known_events": found.known,
        "events_of_unknown_items": found.unknown_items,
    }


def _with_items(
    network: Network,
    data: Dataset,
    record: RunRecord,
    events: pl.DataFrame,
    items: Any,
    train: bool,
    device: str,
    llm: TrainedLLM | None,
) -> tuple[Dataset, int]:
    """The dataset, and the source of `network`, with those of `items` that are new; and how many they are."""
    import polars as pl

    by_id = record.embeddings is None
    frame = None if items is None else canonical(to_polars(items), "items")
    if frame is not None:
        known = data.items[ITEM_ID].cast(pl.String).implode()
        frame = frame.filter(~pl.col(ITEM_ID).cast(pl.String).is_in(known))
    if by_id:
        if not train:
            return data, 0  # nothing is known of an item but what training tells
        ids = pl.DataFrame({ITEM_ID: events[ITEM_ID].unique(maintain_order=True).sort()})
        ids = ids.filter(~pl.col(ITEM_ID).is_in(data.items[ITEM_ID].implode()))
        if frame is not None and len(frame):
            listed = check_new_items(data, frame)
            ids = pl.concat(
                [listed, ids.filter(~pl.col(ITEM_ID).is_in(listed[ITEM_ID].implode()))], how="diagonal"
            )
        frame = ids
    if frame is None or not len(frame):
        return data, 0
    counts: dict[str, int] = {}
    frame = check_new_items(data, frame, counts)
    if by_id:
        network.source.extend(None, torch.zeros(len(frame), dtype=torch.bool))
    else:
        extend_source(network, record, frame, device, llm)
    return added_dataset(data, frame, counts), len(frame)


def extend_source(
    network: Network, record: RunRecord, frame: pl.DataFrame, device: str, llm: TrainedLLM | None = None
) -> None:
    """Append the items of `frame` to the source, by their texts. Raises ConfigError for a run without text."""
    from hllm.items.store.new_items import encode_new_items

    spec = record.embeddings
    if spec is None:
        raise ConfigError(
            "this run knows items by id alone (item_llm=None); new items need a model with text, for example "
            "preset hllm-lite"
        )
    vectors, has_text = encode_new_items(spec, frame, device) if llm is None else llm.encode(frame, device)
    network.source.extend(torch.from_numpy(vectors), torch.from_numpy(has_text))

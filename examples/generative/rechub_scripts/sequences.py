"""Interactions to a processed folder: torch-rechub's files, and beside them the packed dataset.

vocab.pkl, train_data.pkl, val_data.pkl, test_data.pkl   as the chosen state lays them out
dataset/                                                 what our own training reads
hllm.json                                                which files belong together; written last
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.artifacts import digest_file, read_json, write_json
from hllm.compat.rechub.histories import PackedHistories
from hllm.compat.rechub.windows import StoredWindows
from hllm.data.dataset import Dataset
from hllm.data.resplit import with_split
from hllm.data.tables.schema import ITEM_ID, TIMESTAMP, UNITS_PER_SECOND, USER_ID, Tables, guess_time_unit
from hllm.data.tables.vocab import encode
from hllm.errors import ArtifactError
from hllm.formats.rechub import SPLITS, write_single_files, write_vocab, write_windows
from hllm.formats.streams import write_object

if TYPE_CHECKING:
    import polars as pl

DATASET, RECORD = "dataset", "hllm.json"
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray], PackedHistories]


@dataclass(frozen=True)
class Sequences:
    """Packed histories in the folder's own token and user order, with the identifiers behind them.

    tokens int32 (N,) from 1; times int64 (N,) in `unit`; offsets int64 (U + 1,)
    """

    tokens: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series
    unit: str

    @property
    def seconds(self) -> np.ndarray:
        return self.times // UNITS_PER_SECOND[self.unit]

    def only(self, at_least: int) -> Sequences:
        """The users with `at_least` events; tokens keep their numbers."""
        lengths = np.diff(self.offsets)
        users = np.flatnonzero(lengths >= at_least)
        events = np.repeat(lengths >= at_least, lengths)
        return replace(
            self,
            tokens=self.tokens[events],
            times=self.times[events],
            offsets=np.append(0, lengths[users].cumsum()),
            user_ids=self.user_ids[users],
        )

    def frame(self) -> pl.DataFrame:
        """The events as a table, user after user."""
        import polars as pl

        users = np.repeat(np.arange(len(self.user_ids)), np.diff(self.offsets))
        return pl.DataFrame(
            {
                USER_ID: self.user_ids.gather(users),
                ITEM_ID: self.item_ids.gather(self.tokens.astype(np.int64) - 1),
                TIMESTAMP: self.times,
            }
        )


def pack(events: pl.DataFrame, rule: Rule, unit: str | None = None) -> Sequences:
    """Histories of `events` under one of `compat.rechub.histories`' rules.

    The rule sees numbers that sort as the identifiers do, so strings cost no more than integers.
    """
    user_ids, users = encode(events[USER_ID])
    item_ids, items = encode(events[ITEM_ID])
    found = rule(users, items, events[TIMESTAMP].to_numpy())
    guess = guess_time_unit(events[TIMESTAMP], [])
    return Sequences(
        found.tokens,
        found.times,
        found.offsets,
        user_ids.gather(found.user_ids),
        item_ids.gather(found.item_ids),
        unit or ("s" if guess == "index" else guess),
    )


def write_folder(
    folder: Path,
    sequences: Sequences,
    windows: Mapping[str, StoredWindows],
    *,
    layout: str,
    split: Mapping[str, Any],
    name: str,
    state: str,
    items: pl.DataFrame | None = None,
    text_fields: list[str] | None = None,
    single_files: bool = False,
) -> Dataset:
    """Write torch-rechub's files and the packed dataset; returns the dataset, as it lies there.

    layout   of `vocab.pkl`: those of `formats.rechub`, or "nested-pad" with Books' `<PAD>`
    split    `{"name": "leave-one-out"}`, or the name and options of a split that `windows` decide
    """
    (folder / RECORD).unlink(missing_ok=True)
    _write_vocab(folder, sequences.item_ids.to_list(), layout)
    for part in SPLITS:
        write_windows(folder, part, windows[part])
    if single_files:
        write_single_files(folder, [windows[part] for part in SPLITS])
    data = make_dataset(sequences, name, items, text_fields or [])
    if split["name"] != "leave-one-out":
        data = with_split(data, *_mapped(data, sequences, windows), split)
    saved = data.save(folder / DATASET)
    write_record(folder, state)
    return saved


def make_dataset(
    sequences: Sequences, name: str, items: pl.DataFrame | None, text_fields: list[str]
) -> Dataset:
    """The dataset of these events, split leave-one-out; every item of the vocabulary is in its catalogue."""
    import polars as pl

    vocabulary = pl.DataFrame({ITEM_ID: sequences.item_ids})
    if items is None:
        items = vocabulary
    else:
        items = items.with_columns(items[ITEM_ID].cast(sequences.item_ids.dtype))
        others = vocabulary.join(items, on=ITEM_ID, how="anti", maintain_order="left")
        items = pl.concat([items, others], how="diagonal")
    tables = Tables(sequences.frame(), items, None, text_fields, sequences.unit)
    return Dataset.from_source_tables(tables, name=name)


def is_current(folder: Path) -> bool:
    """Whether the packed dataset in `folder` belongs to the files beside it."""
    if not (folder / RECORD).is_file() or not (folder / DATASET).is_dir():
        return False
    record = read_json(folder / RECORD)
    return isinstance(record, dict) and record.get("files") == _identities(folder)


def write_record(folder: Path, state: str | None) -> None:
    """Note which files the packed dataset belongs to."""
    write_json(folder / RECORD, {"format": "hllm-processed", "state": state, "files": _identities(folder)})


def load_dataset(folder: Path) -> Dataset:
    """The packed dataset of a folder for which `is_current` holds."""
    return Dataset.load(folder / DATASET)


def _identities(folder: Path) -> dict[str, Any]:
    """The vocabulary's checksum and the windows' sizes: enough to notice another script's output."""
    try:
        sizes = {f"{split}_data.pkl": (folder / f"{split}_data.pkl").stat().st_size for split in SPLITS}
        return {"vocab.pkl": digest_file(folder / "vocab.pkl"), **sizes}
    except OSError as err:
        raise ArtifactError(f"cannot read {err.filename}: {err.strerror}") from err


def _write_vocab(folder: Path, item_ids: list[Any], layout: str) -> None:
    if layout != "nested-pad":
        write_vocab(folder, item_ids, layout)  # type: ignore[arg-type]
        return
    tokens = {item: token for token, item in enumerate(item_ids, start=1)} | {"<PAD>": 0}
    write_object(
        folder / "vocab.pkl", {"item_to_idx": tokens, "idx_to_item": {t: i for i, t in tokens.items()}}
    )


def _mapped(
    data: Dataset, sequences: Sequences, windows: Mapping[str, StoredWindows]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The windows' split as positions in the dataset, whose users are sorted by identifier."""
    rows = np.empty(len(sequences.user_ids), dtype=np.int64)
    rows[sequences.user_ids.arg_sort().to_numpy()] = np.arange(len(rows))
    shift = np.asarray(data.offsets)[rows] - sequences.offsets[:-1]  # (U,) by the folder's user order
    owner = np.repeat(np.arange(len(rows)), np.diff(sequences.offsets))

    def positions(at: np.ndarray) -> np.ndarray:
        return at + shift[owner[at]]

    mask = np.zeros(len(data.tokens), dtype=bool)
    mask[positions(windows["train"].targets)] = True
    mask[positions(windows["train"].begins)] = True
    queries = {
        name: np.sort(positions(windows[part].targets))
        for name, part in (("validation", "val"), ("test", "test"))
    }
    return mask, queries

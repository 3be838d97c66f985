"""A processed folder as input: ours with its packed dataset, or one that torch-rechub's scripts made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hllm.artifacts import atomic, digest
from hllm.compat.rechub.histories import FolderHistories, from_folder
from hllm.data.dataset import Dataset
from hllm.data.resplit import with_split
from hllm.data.tables.schema import ITEM_ID, TIMESTAMP, USER_ID, to_tables
from hllm.errors import ArtifactError, HLLMError
from hllm.formats.rechub import (
    TEXT_MAPS,
    ItemId,
    Vocab,
    embeddings_path,
    read_embeddings,
    read_text_map,
    read_vocab,
    write_embeddings,
)
from hllm.items.embed import load_embeddings
from hllm.items.embeddings import ItemEmbeddings
from hllm.text.template import OFFICIAL_PROMPT
from rechub_scripts.entry import say
from rechub_scripts.families import Family, check_sequences
from rechub_scripts.sequences import DATASET, is_current, load_dataset, write_record

if TYPE_CHECKING:
    import polars as pl

PREPARED_SPLIT = "users of the folder"  # held-out users as a folder of torch-rechub's has them


@dataclass(frozen=True)
class Processed:
    """vocab: the folder's tokens. data: the packed dataset. rows[t]: the dataset's token of the folder's t."""

    folder: Path
    vocab: Vocab
    data: Dataset
    rows: np.ndarray  # int64 (n_items + 1,)

    def by_folder_token(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (n_catalogue + 1, d) of the dataset's tokens, as rows of the folder's.

        Row 0 is padding, except where the folder's vocabulary starts at 0: there it is an item.
        """
        return vectors[torch.from_numpy(self.rows[self.vocab.shift :])]

    def write_embeddings(self, model_type: str, vectors: np.ndarray) -> Path:
        """Write `item_embeddings_{model_type}.pt`, row = the folder's token."""
        table = self.by_folder_token(torch.from_numpy(vectors))
        if not self.vocab.shift:
            return write_embeddings(self.folder, model_type, table)
        path = embeddings_path(self.folder, model_type)
        with atomic(path) as temporary:
            torch.save(table.clone(), temporary)
        return path

    def text_map(self, texts: Mapping[ItemId, str | None]) -> dict[ItemId, str]:
        """Prompt by item. Where the vocabulary starts at 0, its keys are the rows of the embeddings."""
        if self.vocab.shift:
            return {item: str(texts.get(item) or OFFICIAL_PROMPT) for item in self.vocab.item_ids}
        return {item: str(text) for item, text in texts.items() if text is not None}

    def item_embeddings(self, model_type: str) -> ItemEmbeddings:
        """The folder's `item_embeddings_{model_type}.pt`, in whichever layout, by the dataset's tokens."""
        table = read_embeddings(self.folder, model_type, self.vocab).numpy()
        vectors = np.zeros((self.data.n_catalogue + 1, table.shape[1]), dtype=np.float32)
        vectors[self.rows[1:]] = table[1:]
        has_text = np.asarray(vectors.any(axis=1))
        try:
            own = load_embeddings(self.data, model_type, "last")
        except HLLMError:  # no store of that model here, or no model of that name
            own = None
        if own is not None and np.array_equal(own.vectors[self.rows], vectors[self.rows]):
            return own
        path = embeddings_path(self.folder, model_type)
        spec = {
            "key": digest(vectors)[:16],
            "model": model_type,
            "source": f"file {path.name}",
            "revision": None,
            "weights": None,
            "prompt": OFFICIAL_PROMPT,
            "fields": list(self.data.meta["text_fields"]),
            "pooling": "last",
            "precision": "fp32",
            "max_tokens": None,
            "dim": table.shape[1],
        }
        return ItemEmbeddings(vectors, has_text, spec)

    def with_items(self, items: pl.DataFrame, text_fields: list[str]) -> Processed:
        """The same events and split, with the texts of `items`; the packed dataset is written anew.

        Raises DataError where no item of the vocabulary occurs in `items`.
        """
        import polars as pl

        vocabulary = pl.DataFrame({ITEM_ID: self.vocab.item_ids})
        tables = to_tables(
            self.data.interactions, items, text_fields=text_fields, time_unit=self.data.meta["time_unit"]
        )
        assert tables.items is not None
        vocabulary = vocabulary.with_columns(pl.col(ITEM_ID).cast(tables.items[ITEM_ID].dtype))
        others = vocabulary.join(tables.items, on=ITEM_ID, how="anti", maintain_order="left")
        tables.items = pl.concat([tables.items, others], how="diagonal")
        data = Dataset.from_source_tables(tables, name=self.data.meta["name"])
        old = self.data
        if old.meta["split"]["name"] != "leave-one-out":
            queries = {name: np.asarray(at) for name, at in old.queries.items()}
            data = with_split(data, np.asarray(old.train_mask), queries, old.meta["split"])
        data = data.save(self.folder / DATASET)
        return replace(self, data=data, rows=token_rows(self.vocab, data))


def open_folder(folder: Path, family: Family) -> Processed:
    """Open a processed folder; one of torch-rechub's gets its packed dataset on the way.

    Raises ArtifactError naming what is missing and the script that makes it.
    """
    check_sequences(folder, family)
    vocab = read_vocab(folder)
    if is_current(folder):
        data = load_dataset(folder)
    else:
        say(f"{folder} has no packed dataset of these windows; making it")
        data = from_windows(folder, vocab, family.name).save(folder / DATASET)
        write_record(folder, None)
    return Processed(folder, vocab, data, token_rows(vocab, data))


def token_rows(vocab: Vocab, data: Dataset) -> np.ndarray:
    """The dataset's token int64 (n_items + 1,) of each of the folder's, padding first."""
    tokens = {item: token for token, item in enumerate(data.item_ids, start=1)}
    try:
        return np.array([0, *(tokens[item] for item in vocab.item_ids)], dtype=np.int64)
    except KeyError as err:
        raise ArtifactError(
            f"item {err.args[0]!r} of vocab.pkl is not in the packed dataset; run the preprocessing script again"
        ) from err


def from_windows(folder: Path, vocab: Vocab, name: str) -> Dataset:
    """The packed dataset of a folder that has windows alone: users are numbered, times start at 0.

    Texts come from the folder's text map, where there is one.
    """
    import polars as pl

    found = from_folder(folder)
    ids = pl.Series(ITEM_ID, vocab.item_ids)
    users = np.repeat(np.arange(len(found.offsets) - 1), np.diff(found.offsets))
    events = pl.DataFrame(
        {USER_ID: users, ITEM_ID: ids.gather(found.tokens.astype(np.int64) - 1), TIMESTAMP: found.times}
    )
    texts: dict[object, str] = {}
    if any((folder / name).is_file() for name in TEXT_MAPS):
        texts = {item: text.removeprefix(OFFICIAL_PROMPT) for item, text in read_text_map(folder).items()}
    items = pl.DataFrame({ITEM_ID: ids, "text": [texts.get(item) for item in vocab.item_ids]}).with_columns(
        pl.col("text").cast(pl.String)
    )
    tables = to_tables(events, items, text_fields=["text"] if texts else [], time_unit="s")
    data = Dataset.from_source_tables(tables, name=name)
    return data if found.leave_last_out else with_split(data, *_held_out(found), {"name": PREPARED_SPLIT})


def _held_out(found: FolderHistories) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Whole users held out, every event of theirs but the first a target."""
    split = np.repeat(found.split, np.diff(found.offsets))
    target = np.ones(len(found.tokens), dtype=bool)
    target[found.offsets[:-1]] = False
    held = {"validation": (split == 1) & target, "test": (split == 2) & target}
    return split == 0, {name: np.flatnonzero(mask) for name, mask in held.items()}

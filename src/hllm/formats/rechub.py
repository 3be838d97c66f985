"""torch-rechub's processed folders: read in either state of its document, written so that it reads them.

A folder holds `vocab.pkl`, `train_data.pkl`, `val_data.pkl`, `test_data.pkl` (windows),
`movie_text_map.pkl` or `item_text_map.pkl`, `item_embeddings_{model}.pt` and, after training,
`model.pth`. Tokens here are ours: 0 is padding, token t belongs to `Vocab.item_ids[t - 1]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hllm.artifacts import atomic
from hllm.errors import ArtifactError, DataError, unknown
from hllm.formats.pickles import load_pickle, load_tensor, load_torch
from hllm.formats.streams import WINDOW_COLUMNS, WindowSource, write_columns, write_object

if TYPE_CHECKING:
    import torch

Layout = Literal["nested", "flat", "flat-from-0"]
ItemId = int | str
TEXT_MAPS = ("movie_text_map.pkl", "item_text_map.pkl")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Vocab:
    """Item ids in token order, and how the folder's `vocab.pkl` is laid out.

    nested       `{"item_to_idx": {id: token}, "idx_to_item": {token: id}}`, tokens from 1
    flat         `{id: token}` from 1, and `{0: 0}` for padding
    flat-from-0  `{id: token}` from 0 without padding (their Beauty scripts): our token is theirs + 1
    """

    item_ids: list[ItemId]
    layout: Layout

    @property
    def shift(self) -> int:
        """Our token minus the folder's."""
        return 1 if self.layout == "flat-from-0" else 0


def read_vocab(folder: Path | str) -> Vocab:
    """Read `vocab.pkl` in any of the three layouts.

    Raises ArtifactError for a missing or malicious file and for tokens that are not consecutive.
    """
    path = Path(folder) / "vocab.pkl"
    raw = load_pickle(path)
    if not isinstance(raw, dict) or not raw:
        raise ArtifactError(
            f"{path} holds a {type(raw).__name__} without items, not a torch-rechub vocabulary"
        )
    nested = isinstance(raw.get("item_to_idx"), dict)
    tokens = {_plain_id(item): int(token) for item, token in (raw["item_to_idx"] if nested else raw).items()}
    layout: Layout = "nested" if nested else "flat"
    if not nested and 0 in tokens.values() and tokens.get(0) != 0 and tokens.get("<PAD>") != 0:
        layout = "flat-from-0"
    else:
        tokens = {item: token for item, token in tokens.items() if token != 0}
    ordered = sorted(tokens, key=tokens.__getitem__)
    first = 0 if layout == "flat-from-0" else 1
    if [tokens[item] for item in ordered] != list(range(first, first + len(ordered))):
        raise ArtifactError(f"{path}: tokens are not the consecutive numbers from {first}; preprocess again")
    return Vocab(ordered, layout)


def write_vocab(folder: Path | str, item_ids: Sequence[ItemId], layout: Layout = "nested") -> None:
    """Write `vocab.pkl` for items whose token is their place in `item_ids`, counted from 1.

    Raises DataError where a flat vocabulary cannot hold an item whose id is 0: that key is padding.
    """
    ids = [_plain_id(item) for item in item_ids]
    tokens = {item: t for t, item in enumerate(ids, start=1)}
    value: dict[Any, Any]
    if layout == "nested":
        value = {"item_to_idx": tokens, "idx_to_item": {t: item for item, t in tokens.items()}}
    elif layout == "flat":
        if 0 in tokens:
            raise DataError(
                "item id 0 cannot be written to a flat vocab.pkl, where 0 is padding; use layout='nested'"
            )
        value = {**tokens, 0: 0}
    elif layout == "flat-from-0":
        value = {item: t - 1 for item, t in tokens.items()}
    else:
        raise DataError(unknown("vocab layout", layout, ("nested", "flat", "flat-from-0")))
    write_object(Path(folder) / "vocab.pkl", value)


def read_text_map(folder: Path | str) -> dict[ItemId, str]:
    """Prompt by item id, from `movie_text_map.pkl` or `item_text_map.pkl`, in the file's order.

    Raises ArtifactError where the folder has neither.
    """
    for name in TEXT_MAPS:
        if (path := Path(folder) / name).is_file():
            raw = load_pickle(path)
            if not isinstance(raw, dict):
                raise ArtifactError(f"{path} holds a {type(raw).__name__}, not {{item id: text}}")
            return {_plain_id(item): str(text) for item, text in raw.items()}
    raise ArtifactError(
        f"neither {' nor '.join(TEXT_MAPS)} found in {folder}; run the HLLM preprocessing script"
    )


def write_text_map(path: Path | str, texts: Mapping[ItemId, str]) -> None:
    """Write prompt by item id as a pickle under `path` (`.../movie_text_map.pkl`)."""
    write_object(Path(path), {_plain_id(item): text for item, text in texts.items()})


def embeddings_path(folder: Path | str, model_type: str) -> Path:
    """`item_embeddings_{model_type}.pt` in `folder`; a hub name or path counts by its last part."""
    return Path(folder) / f"item_embeddings_{model_type.rstrip('/').rsplit('/', 1)[-1]}.pt"


def read_embeddings(folder: Path | str, model_type: str, vocab: Vocab | None = None) -> torch.Tensor:
    """Item vectors float32 (n_items + 1, d), row = token, row 0 and items without a vector zero.

    Three layouts of theirs are told apart: row = token; row = raw item id (MovieLens before 0.9,
    which then looked rows up by token); row j = j-th key of the text map (Books and Beauty before
    0.9). Raises ArtifactError for a file that is none of them.
    """
    import torch

    path = embeddings_path(folder, model_type)
    stored = load_tensor(path).float()
    vocab = read_vocab(folder) if vocab is None else vocab
    rows = embedding_rows(stored.shape[0], bool(stored[0].any()), vocab, folder)
    if rows is None:
        raise ArtifactError(
            f"{path} has {stored.shape[0]} rows, but the vocabulary has {len(vocab.item_ids)} items: "
            "it belongs to other data; run the HLLM preprocessing script again"
        )
    index = torch.from_numpy(rows)
    found = torch.zeros(len(rows) + 1, stored.shape[1])
    found[1:] = stored[index.clamp(min=0)] * (index >= 0).unsqueeze(1)
    return found


def embedding_rows(n_rows: int, row0_used: bool, vocab: Vocab, folder: Path | str) -> np.ndarray | None:
    """Row int64 (n_items,) of each item in a table of `n_rows`, -1 = none; None where no layout fits."""
    ids = vocab.item_ids
    keys = list(read_text_map(folder)) if any((Path(folder) / name).is_file() for name in TEXT_MAPS) else []
    by_token = n_rows == len(ids) + 1 and vocab.layout != "flat-from-0"
    if by_token and not (row0_used and len(keys) == n_rows):
        return np.arange(1, len(ids) + 1)
    if all(isinstance(item, int) for item in ids):
        highest = max(int(item) for item in ids)
        among_texts = max((item for item in keys if isinstance(item, int)), default=highest)
        if n_rows - 1 in (highest, among_texts) and highest < n_rows:
            return np.array(ids, dtype=np.int64)
    if len(keys) == n_rows:
        place = {item: j for j, item in enumerate(keys)}
        rows = np.array([place.get(item, -1) for item in ids], dtype=np.int64)
        if (rows < 0).all():
            raise DataError(
                f"no item of vocab.pkl ({type(ids[0]).__name__}, as {ids[0]!r}) occurs in the text map of "
                f"{folder} ({type(keys[0]).__name__}, as {keys[0]!r}); run both scripts on the same data"
            )
        return rows
    return None


def write_embeddings(folder: Path | str, model_type: str, vectors: np.ndarray | torch.Tensor) -> Path:
    """Write vectors (n_items + 1, d), row = token, as `item_embeddings_{model_type}.pt`; row 0 as zeros."""
    import torch

    table = torch.as_tensor(vectors).detach().float().cpu()
    if table[0].any():
        table = table.clone()
        table[0] = 0
    path = embeddings_path(folder, model_type)
    with atomic(path) as temporary:
        torch.save(table, temporary)
    return path


def read_windows(folder: Path | str, split: str) -> dict[str, Any]:
    """Windows of one split as stored: `seq_tokens, seq_positions, seq_time_diffs` and `targets`.

    Arrays (N, L), or lists of lists (Books). Raises ArtifactError where a part is missing.
    """
    if split not in SPLITS:
        raise DataError(unknown("split", split, SPLITS))
    path = Path(folder) / f"{split}_data.pkl"
    data = load_pickle(path)
    if not isinstance(data, dict) or (missing := [c for c in WINDOW_COLUMNS if c not in data]):
        lacks = type(data).__name__ if not isinstance(data, dict) else "dict without " + ", ".join(missing)
        raise ArtifactError(
            f"{path} holds a {lacks}, not torch-rechub's windows; run the preprocessing script"
        )
    return data


def write_windows(folder: Path | str, split: str, windows: WindowSource) -> None:
    """Write `{split}_data.pkl`, piece by piece: memory stays flat however many windows there are."""
    write_columns(Path(folder) / f"{split}_data.pkl", [windows], single=None)


def write_single_files(folder: Path | str, splits: Sequence[WindowSource]) -> None:
    """Write `seq_tokens.pkl, seq_positions.pkl, seq_time_diffs.pkl, targets.pkl`: all splits end to end."""
    for column in WINDOW_COLUMNS:
        write_columns(Path(folder) / f"{column}.pkl", splits, single=column)


def read_model(path: Path | str) -> dict[str, torch.Tensor]:
    """Parameters of their `model.pth` under their names (a DataParallel prefix is dropped).

    Raises ArtifactError for anything but a dictionary of tensors.
    """
    import torch

    state = load_torch(path)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ArtifactError(f"{path} holds a {type(state).__name__}, not a state_dict of tensors")
    return {name.removeprefix("module."): value for name, value in state.items()}


def write_model(path: Path | str, state: Mapping[str, torch.Tensor]) -> None:
    """Write parameters under their names as `model.pth`."""
    import torch

    with atomic(path) as temporary:
        torch.save({name: value.detach().cpu() for name, value in state.items()}, temporary)


def _plain_id(item: Any) -> ItemId:
    """A Python int or str for numpy's scalars."""
    return item.item() if isinstance(item, np.generic) else item

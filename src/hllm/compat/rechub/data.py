"""torch-rechub's data classes: padded windows as a torch dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, random_split

from hllm.compat.rechub.states import InputError, SettingError, check

SIDES = ("pre", "post")
Row = tuple[Tensor, Tensor, Tensor, Tensor]  # tokens (L,), positions (L,), seconds (L,), target ()


def pad_sequences(
    sequences: Sequence[Sequence[float]],
    maxlen: int | None = None,
    dtype: str = "int32",
    padding: str = "pre",
    truncating: str = "pre",
    value: float = 0.0,
) -> np.ndarray:
    """Array (n, maxlen) of ragged sequences; `pre` pads or cuts on the left, `post` on the right.

    `maxlen` defaults to the longest sequence.
    """
    check("padding", padding, SIDES)
    check("truncating", truncating, SIDES)
    if maxlen is None:
        maxlen = max((len(s) for s in sequences), default=0)
    padded = np.full((len(sequences), maxlen), value, dtype=dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        kept = sequence[max(0, len(sequence) - maxlen) :] if truncating == "pre" else sequence[:maxlen]
        if len(kept):
            row[slice(maxlen - len(kept), None) if padding == "pre" else slice(len(kept))] = kept
    return padded


def window_arrays(data: Mapping[str, Any], max_seq_len: int) -> dict[str, np.ndarray]:
    """Stored windows as arrays (N, max_seq_len): lists padded on the left, longer windows cut on the left.

    Arrays narrower than `max_seq_len` stay as they are. Keys as stored: seq_tokens, seq_positions,
    seq_time_diffs, targets; positions of cut windows count from 0 again.
    """
    found = {"targets": np.asarray(data["targets"])}
    for name in ("seq_tokens", "seq_positions", "seq_time_diffs"):
        rows = data[name]
        found[name] = (
            rows[:, -max_seq_len:] if isinstance(rows, np.ndarray) else pad_sequences(rows, max_seq_len)
        )
        if name == "seq_positions" and isinstance(rows, np.ndarray):
            found[name] = np.maximum(found[name] - max(0, rows.shape[1] - max_seq_len), 0)
    return found


class SeqDataset(Dataset[Row]):
    """Windows (N, L) of tokens, positions and seconds, with targets (N,); all come out as int64.

    Raises InputError where the shapes do not agree.
    """

    def __init__(self, seq_tokens: Any, seq_positions: Any, targets: Any, seq_time_diffs: Any) -> None:
        self.seq_tokens, self.seq_positions, self.targets = seq_tokens, seq_positions, targets
        self.seq_time_diffs = seq_time_diffs
        shapes = [tuple(a.shape) for a in (seq_tokens, seq_positions, seq_time_diffs) if hasattr(a, "shape")]
        if len(shapes) < 3 or len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][0] != len(targets):
            raise InputError(
                "seq_tokens, seq_positions and seq_time_diffs must be arrays of one shape (N, L) for N "
                f"targets, not {shapes} for {len(targets)}; window_arrays turns lists into arrays"
            )

    def __getitem__(self, index: int) -> Row:
        return (
            torch.as_tensor(self.seq_tokens[index], dtype=torch.long),
            torch.as_tensor(self.seq_positions[index], dtype=torch.long),
            torch.as_tensor(self.seq_time_diffs[index], dtype=torch.long),
            torch.tensor(self.targets[index], dtype=torch.long),
        )

    def __len__(self) -> int:
        return len(self.targets)


class SequenceDataGenerator:
    """Data loaders over a `SeqDataset`."""

    def __init__(self, seq_tokens: Any, seq_positions: Any, targets: Any, seq_time_diffs: Any) -> None:
        self.seq_tokens, self.seq_positions, self.targets = seq_tokens, seq_positions, targets
        self.seq_time_diffs = seq_time_diffs
        self.dataset = SeqDataset(seq_tokens, seq_positions, targets, seq_time_diffs)

    def generate_dataloader(
        self,
        batch_size: int = 32,
        num_workers: int = 0,
        split_ratio: Sequence[float] | None = None,
        shuffle: bool = True,
    ) -> tuple[DataLoader[Row], ...]:
        """One loader in a tuple, or train (always shuffled), validation and test by `split_ratio`.

        Raises SettingError where `split_ratio` is not three shares with sum 1.
        """

        def loader(dataset: Dataset[Row], shuffle: bool) -> DataLoader[Row]:
            return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, num_workers=num_workers)

        if split_ratio is None:
            return (loader(self.dataset, shuffle),)
        if len(split_ratio) != 3 or abs(sum(split_ratio) - 1.0) > 1e-6:
            raise SettingError(
                f"split_ratio={tuple(split_ratio)} must be three shares with sum 1, as (0.7, 0.1, 0.2)"
            )
        n_train, n_val = (int(len(self.dataset) * share) for share in split_ratio[:2])
        parts = random_split(self.dataset, [n_train, n_val, len(self.dataset) - n_train - n_val])
        return tuple(loader(part, shuffle=i == 0) for i, part in enumerate(parts))

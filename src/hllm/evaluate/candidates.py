"""The items that compete, made ready to be ranked: cut into tiles, and found by token."""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
from torch import Tensor

from hllm.errors import DataError

DENSE = 1.25  # tokens of a range for each candidate in it, up to which the whole range is scored


class Candidates:
    """Distinct tokens, prepared once and used for any number of queries.

    Candidates that fill a range of tokens but for few holes are scored as that range, since a range of a table of
    vectors is read without a copy; what lies in a hole is hidden. Positions count the `scored` tokens.

    scored  int64 (S,)  tokens that are scored, rising
    holes   int64 (h,)  positions, rising, of those that are no candidates
    first   the first token where `scored` is a range, else None

    Raises DataError for tokens that are not distinct, or below 1.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        tokens = np.asarray(tokens, dtype=np.int64)
        # Finding what is unique in a large catalogue can take longer than ranking it, and mostly it comes in order.
        self.scored = tokens.copy() if (np.diff(tokens) > 0).all() else np.unique(tokens)
        if len(self.scored) != len(tokens) or (len(tokens) and self.scored[0] < 1):
            raise DataError("candidates must be distinct tokens from 1; 0 is padding")
        self.holes = np.zeros(0, dtype=np.int64)
        self.first: int | None = None
        if len(tokens) and self.scored[-1] - self.scored[0] < DENSE * len(tokens):
            self.first = int(self.scored[0])
            covered = np.arange(self.first, self.scored[-1] + 1)
            if len(covered) > len(tokens):
                self.holes = np.setdiff1d(covered, self.scored, assume_unique=True) - self.first
            self.scored = covered

    def __len__(self) -> int:
        return len(self.scored) - len(self.holes)

    def without(self, tokens: np.ndarray) -> Candidates:
        """The same but for some tokens; what is prepared is shared."""
        positions = self.positions(np.asarray(tokens, dtype=np.int64))
        fewer = copy(self)
        fewer.holes = np.union1d(self.holes, positions[positions >= 0])
        return fewer

    def positions(self, tokens: np.ndarray) -> np.ndarray:
        """Position int64 of each token, -1 where it is no candidate."""
        if not len(self.scored):
            return np.full(len(tokens), -1, dtype=np.int64)
        if self.first is not None:
            at = tokens - self.first
            inside = (at >= 0) & (at < len(self.scored))
        else:
            at = np.minimum(np.searchsorted(self.scored, tokens), len(self.scored) - 1)
            inside = self.scored[at] == tokens
        if len(self.holes):
            inside &= ~np.isin(at, self.holes)
        return np.where(inside, at, -1)

    def tokens(self, first: int, stop: int, device: torch.device) -> Tensor:
        """`scored[first:stop]` int64 on a device."""
        return torch.from_numpy(self.scored[first:stop]).to(device)

"""What baselines look up in histories and among the tokens that they are asked to score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hllm.packing import pad

if TYPE_CHECKING:
    from hllm.data.dataset import Histories
    from hllm.packing import Batch


def distinct_pairs(histories: Histories, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Users and tokens int64 (P,), by user, then by token: each once, however often a user met an item.

    n  tokens that there are, padding included
    """
    users = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    pairs = np.unique(users * n + np.asarray(histories.tokens, dtype=np.int64))
    return pairs // n, pairs % n


def distinct_tokens(batch: Batch) -> Tensor:
    """Each history's distinct tokens int64 (U, L), by rising token, and zeros."""
    tokens = pad(batch.tokens, batch.offsets).sort(dim=1).values
    again = torch.zeros_like(tokens, dtype=torch.bool)
    again[:, 1:] = tokens[:, 1:] == tokens[:, :-1]
    return tokens.masked_fill(again, 0)


def columns_of(tokens: Tensor, n: int) -> Tensor:
    """Column int64 (n,) of each token among the `tokens` (m,) to be scored; m where it is not asked for.

    Scores are made m + 1 wide, so that the last column takes what nobody asked for, and is then cut off.
    """
    m = len(tokens)
    column = torch.full((n,), m, dtype=torch.int64, device=tokens.device)
    column[tokens] = torch.arange(m, device=tokens.device)
    return column

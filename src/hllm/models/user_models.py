"""User models by name: item vectors in, hidden states out.

A user model is any module that maps packed item vectors to hidden states; each has a file of its own, with its own
initialisation. To add one: write it, add its settings to models/config.py, and name it here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from hllm.kernels.attention import WIDTHS
from hllm.models.config import ScorerConfig, UsersConfig
from hllm.models.gated import GatedUserModel
from hllm.models.hstu import HSTUUserModel
from hllm.models.llm import make_llm
from hllm.models.rechub import RechubUserModel
from hllm.models.sasrec import SASRecUserModel
from hllm.packing import Rows, Signals


class UserModel(Protocol):
    """x (T, w), the rows that its T tokens lie in, and what else is known of the events -> hidden states (T, w).

    A token's state depends on what it may see (`Rows`), never on another sequence of the batch or on how sequences
    fall into rows (`hllm.testing.check_user_model`).
    """

    def __call__(self, x: Tensor, rows: Rows, signals: Signals) -> Tensor: ...


Maker = Callable[[UsersConfig, ScorerConfig, int, "int | None", "dict[str, Any] | None"], UserModel]

USER_MODELS: dict[str, Maker] = {
    "gated": lambda users, scorer, width, max_len, shape: GatedUserModel(users, width),
    "hstu": lambda users, scorer, width, max_len, shape: HSTUUserModel(users, width, max_len),
    "sasrec": lambda users, scorer, width, max_len, shape: SASRecUserModel(users, width, max_len),
    "rechub": lambda users, scorer, width, max_len, shape: RechubUserModel(users, scorer, width, max_len),
    "llm": lambda users, scorer, width, max_len, shape: make_llm(users, width, shape),
}


def make_user_model(
    users: UsersConfig,
    scorer: ScorerConfig,
    width: int,
    max_len: int | None,
    shape: dict[str, Any] | None = None,
) -> UserModel:
    """The user model that a configuration names, freshly initialised.

    width    of the item vectors
    max_len  longest history it will see, None = any
    shape    a user LLM's own configuration, where a finished run is rebuilt
    """
    return USER_MODELS[users.user_model](users, scorer, width, max_len, shape)


def attends_by_bounds(user_model: object, width: int) -> bool:
    """Whether kernels of ours can compute a user model's attention, for item vectors of `width`, by `Rows.bounds`."""
    n_heads = getattr(user_model, "n_heads", 1)
    return bool(getattr(user_model, "by_bounds", False)) and width // n_heads in WIDTHS

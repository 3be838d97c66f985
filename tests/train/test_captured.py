"""What a captured step reads: every tensor of a later call is copied, and what cannot be is an error."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from hllm.errors import TrainingError
from hllm.packing import Batch, Events, ItemView, make_rows, offsets_of, padded
from hllm.train.captured import cloned, copy_into


def full_batch(seed: int) -> Batch:
    """A batch with every field set."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([3, 5])
    tokens, targets, times = (torch.randint(1, 9, (8,), generator=g) for _ in range(3))
    batch = Batch(
        users=torch.randint(0, 9, (2,), generator=g),
        tokens=tokens,
        times=times,
        targets=targets,
        offsets=offsets_of(lengths),
        query_time=torch.randint(0, 9, (2,), generator=g),
        n_targets=torch.tensor(float(seed)),
        token_features={"price": torch.rand(8, 2, generator=g)},
        user_features={"age": torch.rand(2, generator=g)},
    )
    return padded(batch, 12, make_rows(batch, 16, 2))


def view(seed: int) -> ItemView:
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 9, (12,), generator=g) for _ in range(4)]
    everyone = Events(*(torch.randint(0, 9, (20,), generator=g) for _ in range(3)))
    return ItemView(
        rows[0], rows[1], rows[2], 12, rows[0] > 3, rows[3], torch.rand(12, generator=g), everyone
    )


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors(item)]
    if isinstance(value, Batch | ItemView) or hasattr(value, "__dataclass_fields__"):
        return [t for f in fields(value) if f.name != "host_lengths" for t in tensors(getattr(value, f.name))]
    return []


@pytest.mark.parametrize("make", [full_batch, view])
def test_every_tensor_is_copied(make: Any) -> None:
    static = cloned(make(1))
    places = [t.data_ptr() for t in tensors(static)]
    assert len(places) == len(set(places)) == len(tensors(make(1))) >= 6
    copy_into((static,), (make(2),))
    for mine, given in zip(tensors(static), tensors(make(2)), strict=True):
        assert torch.equal(mine, given)
    assert [t.data_ptr() for t in tensors(static)] == places


def test_every_field_of_the_contracts_is_set_here() -> None:
    """A field that someone adds has to be in this test, and so in the step."""
    for value in (full_batch(1), view(1)):
        assert [
            f.name for f in fields(value) if getattr(value, f.name) is None or getattr(value, f.name) == {}
        ] == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"query_time": None}, "Batch.query_time is None"),
        ({"tokens": torch.zeros(13, dtype=torch.long)}, r"Batch.tokens is torch.int64 \(13,\)"),
        ({"times": torch.zeros(12)}, "Batch.times is torch.float32"),
        ({"token_features": {}}, "Batch.token_features"),
        ({"token_features": {"price": torch.zeros(12, 3)}}, "Batch.token_features.price"),
        ({"clock": False}, "Batch.clock is False"),
    ],
)
def test_what_cannot_be_copied_is_named(change: dict[str, Any], name: str) -> None:
    static = cloned(full_batch(1))
    with pytest.raises(TrainingError, match=rf"(?s){name}.*--no-capture"):
        copy_into((static,), (replace(full_batch(2), **change),))


def test_a_given_gradient_stays_with_the_leaf() -> None:
    leaf = torch.zeros(3, requires_grad=True)
    static = cloned(leaf)
    assert static.is_leaf and static.requires_grad and static.data_ptr() != leaf.data_ptr()

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from hllm.packing import (
    Batch,
    last_positions,
    lengths_of,
    offsets_of,
    pad,
    positions_in_segment,
    segment_ids,
    split,
    unpad,
)

ragged = st.lists(st.lists(st.integers(1, 99), max_size=7), max_size=6)


def packed(sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    flat = torch.tensor([x for s in sequences for x in s], dtype=torch.int64)
    return flat, offsets_of(torch.tensor([len(s) for s in sequences], dtype=torch.int64))


@given(ragged)
def test_pad_lays_each_sequence_in_its_row(sequences: list[list[int]]) -> None:
    flat, offsets = packed(sequences)
    longest = max(map(len, sequences), default=0)
    assert pad(flat, offsets, value=-1).tolist() == [s + [-1] * (longest - len(s)) for s in sequences]


@given(ragged, st.integers(0, 3), st.sampled_from([(), (2,), (2, 3)]))
def test_unpad_undoes_pad(sequences: list[list[int]], extra: int, trailing: tuple[int, ...]) -> None:
    flat, offsets = packed(sequences)
    vectors = torch.randn(flat.shape[0], *trailing)
    length = max(map(len, sequences), default=0) + extra
    assert torch.equal(unpad(pad(vectors, offsets, length), offsets), vectors)


@given(ragged)
def test_segments_and_positions(sequences: list[list[int]]) -> None:
    flat, offsets = packed(sequences)
    total = flat.shape[0]
    assert segment_ids(offsets, total).tolist() == [u for u, s in enumerate(sequences) for _ in s]
    assert positions_in_segment(offsets, total).tolist() == [i for s in sequences for i in range(len(s))]
    assert lengths_of(offsets).tolist() == [len(s) for s in sequences]


def test_last_positions() -> None:
    flat, offsets = packed([[5, 6, 7], [8], [9, 4]])
    assert flat[last_positions(offsets)].tolist() == [7, 8, 4]


def test_gradients_pass_through_padding() -> None:
    flat, offsets = packed([[1, 2], [3]])
    x = flat.double().requires_grad_()
    pad(x, offsets, 4).square().sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 4.0, 6.0]


def test_batch_moves_and_keeps_lengths_on_the_host() -> None:
    flat, offsets = packed([[1, 2], [3]])
    batch = Batch(
        users=torch.tensor([4, 9]),
        tokens=flat,
        times=flat * 10,
        targets=torch.tensor([2, 0, 0]),
        offsets=offsets,
        query_time=torch.tensor([50, 60]),
        token_features={"rating": torch.ones(3)},
        user_features={"age": torch.tensor([30, 40])},
    )
    assert (batch.n_users, batch.n_tokens, batch.lengths.tolist()) == (2, 3, [2, 1])
    moved = batch.to("meta")
    every = [moved.users, moved.tokens, moved.times, moved.targets, moved.offsets, moved.query_time]
    every += [moved.token_features["rating"], moved.user_features["age"]]
    assert all(t is not None and t.device.type == "meta" for t in every)
    assert moved.lengths.tolist() == [2, 1]  # readable although the batch's data are not


@given(ragged, st.integers(1, 9))
def test_split_parts_are_the_batch(sequences: list[list[int]], n_tokens: int) -> None:
    flat, offsets = packed(sequences)
    users = torch.arange(len(sequences))
    batch = Batch(
        users, flat, flat + 1, flat + 2, offsets, token_features={"a": flat}, user_features={"b": users}
    )
    parts = list(split(batch, n_tokens))
    assert all(p.n_tokens <= n_tokens or p.n_users == 1 for p in parts)
    # Nor is a part shorter than need be: the next sequence would not have fitted.
    assert all(p.n_tokens + int(q.lengths[0]) > n_tokens for p, q in itertools.pairwise(parts))
    assert [seq for p in parts for seq in unpacked(p.tokens, p.offsets)] == sequences
    for name in ("users", "tokens", "times", "targets"):
        assert [x for p in parts for x in getattr(p, name).tolist()] == getattr(batch, name).tolist()
    assert [x for p in parts for x in p.token_features["a"].tolist()] == flat.tolist()
    assert [x for p in parts for x in p.user_features["b"].tolist()] == users.tolist()


def unpacked(flat: torch.Tensor, offsets: torch.Tensor) -> list[list[int]]:
    bounds = offsets.tolist()
    return [flat[a:b].tolist() for a, b in itertools.pairwise(bounds)]

"""How pairs are grouped by tile, and how large tiles are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hllm.evaluate.tiles import TILE_SCORES, by_tile, tile_size


@pytest.mark.parametrize(("n_scored", "size"), [(50, 50), (50, 7), (1000, 3), (300, 1), (200_000, 2), (0, 5)])
def test_pairs_are_grouped_by_tile(n_scored: int, size: int) -> None:
    """Tile numbers of 8, 16 and 32 bits, a single tile and none; pairs may occur twice."""
    rng = np.random.default_rng(0)
    positions = rng.integers(0, n_scored, 400) if n_scored else np.zeros(0, np.int64)
    rows = rng.integers(0, 9, len(positions))
    if n_scored:
        positions[:2] = 0, n_scored - 1
    made = by_tile(rows, positions, size, n_scored)
    found = []
    for tile, first in enumerate(range(0, n_scored, size)):
        pairs = made.of(tile)
        wanted = (positions >= first) & (positions < first + size)
        assert (pairs is None) == (not wanted.any())
        if pairs is not None:
            columns = pairs[1].numpy() + first
            assert list(zip(pairs[0].tolist(), columns.tolist(), strict=True)) == list(
                zip(rows[wanted].tolist(), positions[wanted].tolist(), strict=True)
            )
            found += columns.tolist()
    assert sorted(found) == sorted(positions.tolist())


def test_tiles_fill_the_room_that_a_device_has() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert tile_size(1000, cpu) == TILE_SCORES["cpu"] // 1000
    assert tile_size(1000, cuda) == TILE_SCORES["cuda"] // 1000 // 64 * 64
    assert tile_size(10**9, cuda) == tile_size(10**9, cpu) == 1
    assert tile_size(1000, cpu, 130) == 130
    assert tile_size(1000, cuda, 130) == 128

"""The ranking engine against brute force: ranks, ties, lists, tiles, filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hllm.data.batches.queries import Queries, eval_queries, history_queries, query_batch
from hllm.errors import ConfigError, DataError, HLLMError
from hllm.evaluate import ranking
from hllm.evaluate.candidates import Candidates
from hllm.evaluate.ranking import RankOptions, candidate_tokens, scan, target_ranks, top_k
from hllm.evaluate.tiles import Block
from hllm.ranks import Ranks


def lists_of(top, n: int) -> list[list[int]]:
    return [top.tokens[top.rows == row].tolist() for row in range(n)]


@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize(("batch_users", "tile_items"), [(512, None), (7, 5), (1, 1), (30, 39)])
def test_ranks_and_lists_equal_brute_force(
    make_dataset, coarse_scores, matrix_ranker, brute_force, keep_seen, batch_users, tile_items
) -> None:
    dataset = make_dataset()
    scores = coarse_scores(dataset)
    candidates = candidate_tokens(dataset)
    expected = brute_force(dataset, "test", scores.numpy(), candidates.tolist(), keep_seen)
    options = RankOptions(candidates, keep_seen, batch_users=batch_users, tile_items=tile_items)
    queries = eval_queries(dataset, "test")
    found = target_ranks(matrix_ranker(scores), queries, options)
    assert found.ranks.tolist() == expected[0]
    assert found.tied.tolist() == expected[1]
    assert any(expected[1]), "the case has ties"
    assert any(r == 0 for r in expected[0]) != keep_seen, "the case has repeated targets"
    for k in (1, 6, 1000):
        top = top_k(matrix_ranker(scores), queries, options, k)
        assert lists_of(top, len(queries)) == [row[:k] for row in expected[2]]
        users = queries.users[top.rows]
        assert np.array_equal(top.scores, scores.numpy()[users, top.tokens])
        assert top.ranks.tolist() == [r + 1 for row in expected[2] for r in range(len(row[:k]))]


def test_a_block_that_does_not_fit_is_ranked_in_halves(make_dataset, coarse_scores, matrix_ranker) -> None:
    dataset = make_dataset()
    scores = coarse_scores(dataset)
    options = RankOptions(candidate_tokens(dataset))
    queries = eval_queries(dataset, "test")

    class Small(matrix_ranker):
        def query(self, batch):
            if batch.n_users > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 72.00 MiB")
            blocks.append(batch.n_users)
            return super().query(batch)

    room, blocks = 9, []
    expected, found = (
        target_ranks(kind(scores), queries, options).ranks.tolist() for kind in (matrix_ranker, Small)
    )
    assert found == expected
    assert len(blocks) > 3 and sum(blocks) == len(queries)
    blocks.clear()
    full, split = (top_k(kind(scores), queries, options, 7) for kind in (matrix_ranker, Small))
    assert split.rows.tolist() == full.rows.tolist() and split.tokens.tolist() == full.tokens.tolist()
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        target_ranks(Small(scores), queries, options)


@given(seed=st.integers(0, 10_000), tile=st.integers(1, 50), keep=st.booleans(), levels=st.integers(1, 500))
def test_top_k_agrees_with_target_ranks(seed: int, tile: int, keep: bool, levels: int) -> None:
    """Without a tie at the target both say the same rank; with one, the list is kinder, never harsher."""
    rng = np.random.default_rng(seed)
    n_users, n_items, length = 9, 25, 6
    scores = torch.from_numpy(rng.integers(0, levels + 1, (n_users, n_items + 1)).astype(np.float32))
    queries = Queries(
        users=np.arange(n_users),
        targets=rng.integers(1, n_items + 1, n_users),
        starts=np.arange(n_users) * length,
        ends=np.arange(n_users) * length + rng.integers(0, length, n_users),
        tokens=rng.integers(1, n_items + 1, n_users * length).astype(np.int32),
        times=np.zeros(n_users * length, np.int64),
    )
    ranker = _Matrix(scores)
    options = RankOptions(np.arange(1, n_items + 1), keep, tile_items=tile, batch_users=4)
    found = target_ranks(ranker, queries, options)
    top = top_k(ranker, queries, options, n_items)
    for query in range(n_users):
        row = top.tokens[top.rows == query].tolist()
        seen = set(queries.tokens[queries.starts[query] : queries.ends[query]].tolist())
        assert len(row) == n_items - (0 if keep else len(seen))
        target = int(queries.targets[query])
        if found.ranks[query] == 0:
            assert target not in row
        elif found.tied[query]:
            assert row.index(target) + 1 <= found.ranks[query]
        else:
            assert row.index(target) + 1 == found.ranks[query]


class _Matrix(nn.Module):
    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def query(self, batch):
        return batch.users

    def score(self, query, tokens):
        return self.scores[query][:, tokens]


@pytest.mark.parametrize("target", [1, 100])
def test_case_d7_constant_scores_get_nothing(target: int) -> None:
    """Case D7: 100 items, all scores 0; the target first or last in the vocabulary."""
    queries = _with_target([[50]], [target])
    found = target_ranks(
        _Matrix(torch.zeros(1, 101)), queries, RankOptions(np.arange(1, 101), keep_seen=True)
    )
    assert found.ranks.tolist() == [100]
    assert found.tied.tolist() == [True]


def _with_target(histories: list[list[int]], targets: list[int]) -> Queries:
    q = history_queries(histories)
    return Queries(np.arange(len(histories)), np.array(targets), q.starts, q.ends, q.tokens, q.times)


def test_case_d19_filters_come_before_top_k() -> None:
    """Case D19: 5 items, 3 seen, k = 10: two rows; the best of the two excluded, k = 1: the other."""
    queries = _with_target([[1, 2, 3]], [0])
    ranker = _Matrix(torch.tensor([[9.0, 5, 4, 3, 2, 1]]))  # padding would win
    top = top_k(ranker, queries, RankOptions(np.arange(1, 6)), 10)
    assert top.tokens.tolist() == [4, 5]
    assert top.ranks.tolist() == [1, 2]
    assert np.isfinite(top.scores).all()
    excluded = (np.array([0]), np.array([4]))
    top = top_k(ranker, queries, RankOptions(np.arange(1, 6), excluded=excluded), 1)
    assert (top.tokens.tolist(), top.ranks.tolist()) == ([5], [1])


def test_exclusions_belong_to_their_query() -> None:
    queries = _with_target([[1], [1], [1]], [2, 2, 2])
    ranker = _Matrix(torch.tensor([[0.0, 1, 3, 2]]).expand(3, -1))
    options = RankOptions(np.arange(1, 4), excluded=(np.array([1, 1, 2]), np.array([2, 3, 2])), batch_users=2)
    top = top_k(ranker, queries, options, 5)
    assert [top.tokens[top.rows == row].tolist() for row in range(3)] == [[2, 3], [], [3]]
    assert target_ranks(ranker, queries, options).ranks.tolist() == [1, 0, 0]


def test_candidate_subset_and_targets_outside_it() -> None:
    queries = _with_target([[1], [1], [30]], [2, 3, 4])
    ranker = _Matrix(torch.arange(41.0).expand(3, -1))
    options = RankOptions(np.array([4, 2, 9]))
    assert target_ranks(ranker, queries, options).ranks.tolist() == [3, 0, 2]
    assert top_k(ranker, queries, options, 2).tokens.tolist() == [9, 4] * 3


def test_nothing_to_recommend_and_nobody_to_ask() -> None:
    ranker = _Matrix(torch.zeros(1, 9))
    empty = np.zeros(0, np.int64)
    assert len(top_k(ranker, _with_target([[1]], [1]), RankOptions(empty), 3)) == 0
    assert target_ranks(ranker, _with_target([[1]], [1]), RankOptions(empty)).ranks.tolist() == [0]
    assert len(top_k(ranker, history_queries([]), RankOptions(np.arange(1, 4)), 3)) == 0
    assert target_ranks(ranker, history_queries([]), RankOptions(np.arange(1, 4))).ranks.shape == (0,)


def test_case_d20_empty_history_is_no_trouble_for_the_engine() -> None:
    top = top_k(_Matrix(torch.arange(6.0)[None]), _with_target([[]], [0]), RankOptions(np.arange(1, 6)), 2)
    assert top.tokens.tolist() == [5, 4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tile_items", [None, 2])
def test_scores_that_are_no_numbers(bad: float, tile_items: int | None) -> None:
    scores = torch.zeros(2, 6)
    scores[1, 5] = bad
    options = RankOptions(np.arange(1, 6), tile_items=tile_items)
    for ask in (target_ranks, lambda *a: top_k(*a, 2)):
        with pytest.raises(HLLMError, match="NaN or infinite"):
            ask(_Matrix(scores), _with_target([[1], [5]], [2, 2]), options)


def test_narrow_or_misshapen_scores_are_refused() -> None:
    queries, options = _with_target([[1]], [2]), RankOptions(np.arange(1, 6))
    with pytest.raises(
        HLLMError, match=r"_Matrix\.score gave torch\.bfloat16 \(1, 5\), not float32 \(1, 5\)"
    ):
        target_ranks(_Matrix(torch.zeros(1, 6, dtype=torch.bfloat16)), queries, options)


def test_autocast_does_not_narrow_scores() -> None:
    class Product(_Matrix):
        def score(self, query, tokens):
            return torch.ones(len(query), 3) @ self.scores[:, tokens]

    ranker = Product(torch.rand(3, 6, generator=torch.Generator().manual_seed(0)))
    queries, options = _with_target([[1]], [2]), RankOptions(np.arange(1, 6))
    plain = top_k(ranker, queries, options, 5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = top_k(ranker, queries, options, 5)
    assert np.array_equal(plain.scores, inside.scores)


def test_float_order_is_exact() -> None:
    """Neighbouring floats, huge and tiny, of both signs, come back bit for bit and in order."""
    values = torch.tensor(
        [3e38, 1.0, np.nextafter(np.float32(1), np.float32(2)), 1e-45, 0.0, -1e-45, -1.0, -3e38]
    )
    scores = torch.cat([torch.zeros(1), values])[None]
    top = top_k(_Matrix(scores), _with_target([[]], [0]), RankOptions(np.arange(1, 9), tile_items=3), 8)
    expected = torch.sort(values, descending=True)
    assert np.array_equal(top.scores, expected.values.numpy())
    assert np.array_equal(top.tokens, expected.indices.numpy() + 1)


def test_a_module_ranks_without_dropout_and_is_left_as_it_was() -> None:
    class Modes(_Matrix):
        modes: list[bool]

        def query(self, batch):
            self.modes.append(self.training)
            return batch.users

    ranker = Modes(torch.zeros(1, 6))
    ranker.modes = []
    for training in (True, False):
        ranker.train(training)
        target_ranks(ranker, _with_target([[1]], [2]), RankOptions(np.arange(1, 6)))
        assert ranker.training is training
    assert ranker.modes == [False, False]


def test_candidates(make_dataset) -> None:
    dataset = make_dataset()
    assert candidate_tokens(dataset).tolist() == list(range(1, dataset.n_candidates + 1))
    assert candidate_tokens(dataset, np.array([5, 3, 5])).tolist() == [4, 6]  # ids are from 0
    with pytest.raises(ConfigError, match=r"unknown candidates 'interacte' .*did you mean 'interacted'"):
        candidate_tokens(dataset, "interacte")
    with pytest.raises(DataError, match="unknown item_id 40"):
        candidate_tokens(dataset, [0, 40])
    with pytest.raises(DataError, match="distinct"):
        target_ranks(_Matrix(torch.zeros(1, 6)), _with_target([[1]], [2]), RankOptions(np.array([1, 1])))
    with pytest.raises(ConfigError, match="k=0"):
        top_k(_Matrix(torch.zeros(1, 6)), _with_target([[1]], [2]), RankOptions(np.arange(1, 6)), 0)


def test_no_tensor_of_all_users_and_items() -> None:
    """Scores are asked for in tiles of the given size, each tile at most twice a block."""
    shapes: list[tuple[int, int]] = []

    class Watched(_Matrix):
        def score(self, query, tokens):
            shapes.append((len(query), len(tokens)))
            return super().score(query, tokens)

    ranker = Watched(torch.rand(10, 31, generator=torch.Generator().manual_seed(1)))
    queries = _with_target([[1]] * 10, [2] * 10)
    target_ranks(ranker, queries, RankOptions(np.arange(1, 31), batch_users=4, tile_items=8))
    assert max(users for users, _ in shapes) == 4
    assert max(items for _, items in shapes) == 8
    assert len(shapes) == 3 * (4 + 1)  # three blocks; four tiles, and the one with all the targets again
    shapes.clear()
    target_ranks(ranker, queries, RankOptions(np.arange(1, 31), batch_users=4))
    assert len(shapes) == 3  # a single tile is made once


class _Table(_Matrix):
    """Scores by range, as a trained network has them; what is asked for otherwise is noted."""

    def __init__(self, scores: torch.Tensor, off: float = 0.0) -> None:
        super().__init__(scores)
        self.off = off
        self.ranges: list[tuple[int, int]] = []

    def score(self, query, tokens):
        return super().score(query, tokens) + self.off

    def score_range(self, query, first, stop):
        self.ranges.append((first, stop))
        return self.scores[query][:, first:stop].clone()

    def all_finite(self, query):
        return True


@pytest.mark.parametrize("off", [0.0, 1e-3, -1e-3])
@pytest.mark.parametrize("tile_items", [None, 7])
def test_ranges_rank_as_tokens_do(make_dataset, coarse_scores, off, tile_items) -> None:
    """Also where a target's score made ahead is not, bit for bit, what its own tile says."""
    dataset = make_dataset()
    scores = coarse_scores(dataset)
    tokens = np.setdiff1d(np.arange(1, dataset.n_candidates + 1), [3, 17])
    queries = eval_queries(dataset, "test")
    plain, ranged = _Matrix(scores), _Table(scores, off)
    options = RankOptions(tokens, tile_items=tile_items)
    again = RankOptions(Candidates(np.arange(1, dataset.n_candidates + 1)).without(np.array([3, 17])))
    expected = target_ranks(plain, queries, options)
    for asked in (options, again):
        found = target_ranks(ranged, queries, asked)
        assert found.ranks.tolist() == expected.ranks.tolist()
        assert found.tied.tolist() == expected.tied.tolist()
        tops = [top_k(ranker, queries, asked, 5) for ranker in (plain, ranged)]
        assert tops[0].tokens.tolist() == tops[1].tokens.tolist()
        assert not {3, 17} & set(tops[1].tokens.tolist())
    assert len(ranged.ranges) > 0


def test_a_damaged_hole_is_nobodys_trouble() -> None:
    scores = torch.zeros(1, 12)
    scores[0, 5] = torch.nan
    tokens = np.setdiff1d(np.arange(1, 12), [5])
    assert len(top_k(_Matrix(scores), _with_target([[1]], [2]), RankOptions(tokens), 99)) == 9


@pytest.fixture
def ten() -> tuple[torch.Tensor, Queries]:
    """Scores (10, 31), all different, and ten queries."""
    scores = torch.rand(10, 31, generator=torch.Generator().manual_seed(1))
    return scores, _with_target([[1]] * 10, list(range(2, 12)))


@pytest.fixture(params=[False, True], ids=["in its turn", "ahead"])
def ahead(request, monkeypatch) -> bool:
    """Whether blocks are prepared ahead, as for a GPU."""
    monkeypatch.setattr(ranking, "_overlaps", lambda device: request.param)
    return request.param


def test_a_block_is_prepared_while_the_one_before_is_under_way_on_a_gpu(ten, ahead, monkeypatch) -> None:
    """One block is launched at a time, and read before the next is launched."""
    told: list[str] = []
    plain = Block.check

    def prepared(queries, part, max_len):
        told.append(f"prepare {part.start}")
        return query_batch(queries, part, max_len)

    def read(block):
        told.append(f"read {int(block.query[0])}")
        plain(block)

    class Told(_Matrix):
        def query(self, batch):
            told.append(f"launch {int(batch.users[0])}")
            return batch.users

    monkeypatch.setattr(ranking, "query_batch", prepared)
    monkeypatch.setattr(Block, "check", read)
    for block in scan(Told(ten[0]), ten[1], RankOptions(np.arange(1, 31), batch_users=4), targets=True):
        told.append(f"given {block.part.start}")
    if ahead:
        assert told == [
            *("prepare 0", "launch 0", "prepare 4", "read 0", "given 0"),
            *("launch 4", "prepare 8", "read 4", "given 4"),
            *("launch 8", "read 8", "given 8"),
        ]
    else:
        assert told == [f"{do} {i}" for i in (0, 4, 8) for do in ("prepare", "launch", "read", "given")]


def test_only_a_gpu_leaves_the_host_time() -> None:
    assert ranking._overlaps(torch.device("cuda:1")) and not ranking._overlaps(torch.device("cpu"))


def test_who_stops_early_leaves_nothing_behind(ten, ahead) -> None:
    launched: list[int] = []

    class Launched(_Matrix):
        def query(self, batch):
            assert not self.training and not torch.is_grad_enabled()
            launched.append(batch.n_users)
            return batch.users

    ranker, options = Launched(ten[0]).train(), RankOptions(np.arange(1, 31), batch_users=4)
    blocks = scan(ranker, ten[1], options, targets=True, k=3)
    first = next(blocks)
    assert launched == [4] and torch.is_grad_enabled()
    blocks.close()
    assert launched == [4] and ranker.training
    whole = list(scan(ranker, ten[1], options, targets=True, k=3))
    assert [b.part for b in whole] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert whole[0].targets.ranks.tolist() == first.targets.ranks.tolist()
    assert whole[0].top.tokens.tolist() == first.top.tokens.tolist()


@pytest.mark.parametrize("when", ["query", "tile", "reading"])
def test_memory_that_runs_out_at_any_time(ten, ahead, when, monkeypatch) -> None:
    """Blocks come in order, each query once, with the same ranks; what cannot be halved is told."""
    scores, queries = ten
    expected = target_ranks(_Matrix(scores), queries, RankOptions(np.arange(1, 31), tile_items=8)).ranks
    released: list[bool] = []
    monkeypatch.setattr(ranking, "release_memory", lambda: released.append(True))

    class Full(_Table):
        """Its tiles never say what was made ahead, so that reading the results goes through them once more."""

        def query(self, batch):
            self.passes = 0
            self.short = int(batch.users[0]) == at and batch.n_users > room
            self.fail("query")
            return batch.users

        def score_range(self, query, first, stop):
            self.passes += first == 1
            if stop == 31:  # the last tile of four, in the first pass or in the second
                self.fail("reading" if self.passes == 2 else "tile")
            return super().score_range(query, first, stop)

        def fail(self, now):
            if now == when and self.short:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 72.00 MiB")

    options = RankOptions(np.arange(1, 31), batch_users=4, tile_items=8)
    whole, halves = [slice(0, 4), slice(4, 8), slice(8, 10)], [slice(4, 6), slice(6, 8)]
    for case in (
        (4, 2, [whole[0], *halves, whole[2]]),
        (0, 1, [slice(0, 1), slice(1, 2), slice(2, 4), *whole[1:]]),
        (8, 1, [*whole[:2], slice(8, 9), slice(9, 10)]),
    ):
        at, room, parts = case
        released.clear()
        found = list(scan(Full(scores, 1e-3), queries, options, targets=True))
        assert [b.part for b in found] == parts
        assert np.concatenate([b.targets.ranks for b in found]).tolist() == expected.tolist()
        assert len(released) == len(parts) - len(whole)
    at, room = 5, 0
    with pytest.raises(torch.OutOfMemoryError):
        list(
            scan(
                Full(scores, 1e-3),
                queries,
                RankOptions(np.arange(1, 31), batch_users=1, tile_items=8),
                targets=True,
            )
        )


def test_a_block_that_could_not_be_prepared_ahead_is_prepared_in_its_turn(ten, ahead, monkeypatch) -> None:
    """The block under way is not blamed, and the other one is halved where memory ran out."""
    full: list[slice] = []

    def prepared(queries, part, max_len):
        if part.start == 4 and part.stop == 8:
            full.append(part)
            raise MemoryError
        return query_batch(queries, part, max_len)

    monkeypatch.setattr(ranking, "query_batch", prepared)
    found = list(scan(_Matrix(ten[0]), ten[1], RankOptions(np.arange(1, 31), batch_users=4), targets=True))
    parts = [slice(0, 4), slice(4, 6), slice(6, 8), slice(8, 10)]
    assert [b.part for b in found] == parts and full == [slice(4, 8)] * (1 + ahead)


def test_processes_launch_equally_many_blocks_and_give_their_own(ten) -> None:
    launched: list[list[int]] = []

    class Launched(_Matrix):
        def query(self, batch):
            launched[-1].append(int(batch.users[0]))
            return batch.users

    given = []
    for rank in range(3):
        launched.append([])
        options = RankOptions(np.arange(1, 31), batch_users=2)
        blocks = scan(Launched(ten[0]), ten[1], options, targets=True, ranks=Ranks(rank, 3))
        given.append([b.part.start for b in blocks])
    assert given == [[0, 6], [2, 8], [4]]
    assert launched == [[0, 6], [2, 8], [4, 0]]


@pytest.mark.parametrize("step", [0.25, -0.25])
def test_a_target_does_not_compete_with_itself_in_a_tile_made_anew(step: float) -> None:
    """Tiles that say something else each time they are made, by less than scores differ."""
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(np.stack([rng.permutation(31) for _ in range(10)]).astype(np.float32))
    queries = _with_target([[1]] * 10, rng.integers(2, 31, 10).tolist())
    options = RankOptions(np.arange(1, 31), tile_items=8)
    expected = target_ranks(_Matrix(scores), queries, options)

    class Drifting(_Table):
        def score_range(self, query, first, stop):
            again = (first, stop) in self.ranges
            return super().score_range(query, first, stop) + (step if again else 0.0)

    ranker = Drifting(scores, off=0.125)
    found = target_ranks(ranker, queries, options)
    assert len(ranker.ranges) == 8, "two passes over four tiles"
    assert found.ranks.tolist() == expected.ranks.tolist()
    assert not found.tied.any() and not expected.tied.any()

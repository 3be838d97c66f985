"""Jobs that wait together are run together, and a bad one spoils no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from hllm.serve.batching import Batcher, Overloaded


def doubled(calls: list[list[int]]) -> Any:
    def work(values: list[int]) -> Sequence[int]:
        calls.append(values)
        if 13 in values:
            raise ValueError("13")
        return [2 * value for value in values]

    return work


def test_equal_keys_are_one_call() -> None:
    calls: list[list[int]] = []

    async def main() -> list[Any]:
        batcher = Batcher()
        jobs = [batcher.submit(n % 2, [n, n], doubled(calls)) for n in range(6)]
        jobs += [batcher.submit(None, [n], doubled(calls)) for n in (7, 8)]
        results = await asyncio.gather(*jobs)
        await batcher.close()
        return results

    assert asyncio.run(main()) == [[2 * n, 2 * n] for n in range(6)] + [[14], [16]]
    assert sorted(calls) == [[0, 0, 2, 2, 4, 4], [1, 1, 3, 3, 5, 5], [7], [8]]


def test_a_bad_job_fails_alone() -> None:
    async def main() -> list[Any]:
        batcher = Batcher()
        jobs = [batcher.submit("same", [n], doubled([])) for n in (1, 13, 2)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        await batcher.close()
        return results

    first, bad, last = asyncio.run(main())
    assert (first, last) == ([2], [4])
    assert isinstance(bad, ValueError)


def test_too_many_and_too_slow_are_told() -> None:
    gate = threading.Event()

    async def main() -> None:
        batcher = Batcher(max_waiting=2, wait_seconds=0.2)
        jobs = [asyncio.create_task(batcher.call(gate.wait))]
        await asyncio.sleep(0.05)  # it is being run, and waits no more
        jobs += [asyncio.create_task(batcher.submit(None, [n], doubled([]))) for n in (1, 2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded, match="2 requests are waiting"):
            await batcher.submit(None, [3], doubled([]))
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert all(isinstance(result, Overloaded) for result in results)
        gate.set()
        assert await batcher.submit(None, [4], doubled([])) == [8]
        await batcher.close()

    asyncio.run(main())

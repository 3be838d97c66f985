"""Dynamic batching: requests that came while the model was busy are answered together, in one thread.

Nothing waits for a batch to fill. Alone, a request is run at once; under load, batches grow by themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hllm.errors import HLLMError

Work = Callable[[list[Any]], Sequence[Any]]


class Overloaded(HLLMError):
    """More requests than are answered in time; the client is to come again later."""


@dataclass(eq=False)
class Job:
    """`work(values)` gives one result a value. Jobs with the same `key` are one call; None: never joined."""

    key: Hashable | None
    values: list[Any]
    work: Work
    future: asyncio.Future[list[Any]]


class Batcher:
    """Runs jobs in one thread of its own, which has one torch thread.

    >>> async def main():
    ...     batcher = Batcher()
    ...     both = [batcher.submit("double", [n], lambda values: [2 * v for v in values]) for n in (1, 2)]
    ...     return await asyncio.gather(*both)
    >>> asyncio.run(main())
    [[2], [4]]
    """

    def __init__(self, max_waiting: int = 256, max_batch: int = 64, wait_seconds: float = 10.0) -> None:
        self.max_waiting, self.max_batch, self.wait_seconds = max_waiting, max_batch, wait_seconds
        self.batches = self.batched = 0  # calls of the model, and jobs answered by them
        self._jobs: deque[Job] = deque()
        self._task: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, "hllm-model", initializer=_one_torch_thread)

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._jobs)

    async def submit(self, key: Hashable | None, values: list[Any], work: Work) -> list[Any]:
        """One result a value. Raises Overloaded where too many wait already, or it took too long."""
        if len(self._jobs) >= self.max_waiting:
            raise Overloaded(f"{len(self._jobs)} requests are waiting already; come again later")
        job = Job(key, values, work, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        try:
            return await asyncio.wait_for(job.future, self.wait_seconds)
        except TimeoutError:
            raise Overloaded(f"no answer within {self.wait_seconds:g} s; come again later") from None
        finally:
            if not job.future.done() or job.future.cancelled():
                with suppress(ValueError):  # it has begun
                    self._jobs.remove(job)

    async def call(self, work: Callable[[], Any]) -> Any:
        """The result of `work()`, run between two batches."""
        return (await self.submit(None, [None], lambda _: [work()]))[0]

    async def close(self) -> None:
        """Answer what waits, then end the thread."""
        if self._task is not None:
            await self._task
        self._pool.shutdown()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._jobs:
            taken = [self._jobs.popleft() for _ in range(min(len(self._jobs), self.max_batch))]
            taken = [job for job in taken if not job.future.done()]  # nobody waits for the others any more
            groups = grouped(taken)
            self.batches, self.batched = self.batches + len(groups), self.batched + len(taken)
            for group in groups:
                for job, result in zip(
                    group, await loop.run_in_executor(self._pool, run, group), strict=True
                ):
                    if job.future.done():
                        continue
                    if isinstance(result, Exception):
                        job.future.set_exception(result)
                    else:
                        job.future.set_result(result)


def grouped(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs of one key together, in the order in which the first of each came."""
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault(id(job) if job.key is None else (job.key,), []).append(job)
    return list(groups.values())


def run(jobs: Sequence[Job]) -> list[list[Any] | Exception]:
    """The results of jobs of one key, or what each of them raised: a bad request spoils no other."""
    try:
        results = list(jobs[0].work([value for job in jobs for value in job.values]))
    except Exception as err:
        return [err] if len(jobs) == 1 else [run([job])[0] for job in jobs]
    answers: list[list[Any] | Exception] = []
    for job in jobs:
        answers.append(results[: len(job.values)])
        results = results[len(job.values) :]
    return answers


def _one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)  # several workers would fight for the cores

"""The processes that share one training, evaluation or embedding: which of them this is, and what they tell each other.

A process started by `torchrun`, `accelerate launch` or `--gpus N` finds its rank in its environment. Everything here
is torch.distributed; with a single process every function returns what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hllm.errors import DeviceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
BUCKET = 1 << 24  # numbers that one reduction takes together


@dataclass(frozen=True)
class Ranks:
    """This process among those of a job.

    rank     its number, from 0
    world    how many there are
    control  group of messages between hosts' memories, which no GPU waits for
    """

    rank: int = 0
    world: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        return self.world > 1

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor, in place, by its mean over the ranks, which all hold it in the same order."""
        if not self.many:
            return
        import torch.distributed as dist

        for bucket in _buckets(tensors):
            flat = bucket[0].view(-1) if _whole(bucket) else _flat(bucket)
            dist.all_reduce(flat)
            flat /= self.world
            if not _whole(bucket):
                for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def gather_rows(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Rows (n_r, ...) of every rank, one rank after the other: (sum of `sizes`, ...). `sizes`: every rank's n_r."""
        if not self.many:
            return rows
        import torch.distributed as dist

        most = max(sizes)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [padded.new_empty(padded.shape) for _ in sizes]
        dist.all_gather(found, padded)
        import torch

        return torch.cat([part[:n] for part, n in zip(found, sizes, strict=True)])

    def gather(self, value: T) -> list[T]:
        """`value` of every rank, in their order. Pickled: for small things that this job has made itself."""
        if not self.many:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self.control)
        return found

    def agree(self, value: T) -> T:
        """What rank 0 says."""
        if not self.many:
            return value
        import torch.distributed as dist

        box: list[Any] = [value if self.first else None]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def most(self, value: int) -> int:
        """The greatest `value` of any rank."""
        if not self.many:
            return value
        import torch
        import torch.distributed as dist

        box = torch.tensor(value)
        dist.all_reduce(box, dist.ReduceOp.MAX, group=self.control)
        return int(box)

    def send(
        self, tensors: Mapping[str, Tensor] | None, device: torch.device
    ) -> Iterator[tuple[str, Tensor]]:
        """Rank 0's tensors by name, one at a time on `device`, on every rank."""
        import torch
        import torch.distributed as dist

        given = dict(tensors or {})
        names = self.agree([(name, t.shape, t.dtype) for name, t in sorted(given.items())])
        for name, shape, dtype in names:
            here = given[name].to(device) if self.first else torch.empty(shape, dtype=dtype, device=device)
            if self.many:
                here = here.contiguous()
                dist.broadcast(here, src=0)
            yield name, here

    def wait(self) -> None:
        """Go on once every rank is here."""
        if self.many:
            import torch.distributed as dist

            dist.barrier(group=self.control)


ALONE = Ranks()


def launched() -> bool:
    """Whether this process is one of several, by its environment."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1) > 1


def speaks() -> bool:
    """Whether this process prints: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0") or 0) == 0 or not launched()


def is_cut_off(err: BaseException) -> bool:
    """Whether an exception says that another process is gone."""
    text = str(err)
    return type(err).__name__ == "DistBackendError" or any(
        sign in text
        for sign in ("Connection closed by peer", "Connection reset by peer", "gloo/transport", "NCCL")
    )


def now() -> Ranks:
    """The ranks of this process's group; `ALONE` where `join` was not called and nobody else made a group."""
    import sys

    if "torch" not in sys.modules:
        return ALONE
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size(), _control())


def join(device: str = "auto") -> str:
    """Meet the other ranks, where there are any; returns the device of this one: `device`, or its GPU of this host.

    Raises DeviceError where a host has fewer GPUs than ranks.
    """
    if not launched():
        return device
    import torch
    import torch.distributed as dist

    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise DeviceError(
                f"this host has {torch.cuda.device_count()} GPUs, but rank {os.environ['RANK']} is its number "
                f"{local + 1}; start as many processes as there are GPUs, or use --device cpu"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        at = torch.device(device) if on_gpu else None
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", device_id=at)
        now()  # everyone makes the group of messages at the same time
    return device if on_gpu else "cpu"


def leave() -> None:
    """Part from the other ranks."""
    import sys

    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            _groups.clear()
            dist.destroy_process_group()


_groups: dict[int, Any] = {}  # of messages on the CPU, by the default group that they belong to


def _control() -> Any:
    import torch.distributed as dist

    world = dist.group.WORLD
    if id(world) not in _groups:
        _groups[id(world)] = dist.new_group(backend="gloo") if dist.get_backend() != "gloo" else world
    return _groups[id(world)]


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type together, at most BUCKET numbers or a single tensor at a time, in their order."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _whole(bucket: list[Tensor]) -> bool:
    return len(bucket) == 1 and bucket[0].is_contiguous()


def _flat(bucket: list[Tensor]) -> Tensor:
    import torch

    return torch.cat([t.reshape(-1) for t in bucket])

"""Vectors of many items with gradient in bounded memory: which graphs to keep, and which to run again.

Three ways, all the same in loss and gradient:

    graph       every chunk's graph is kept: the least work, the most memory
    checkpoint  every graph is kept, its layers' inputs alone: one more forward pass
    cache       chunks run without a graph and again in the backward pass, with the gradient at their
                vectors: one more forward pass, the memory of one chunk (Gao et al., 2021). Where some room
                is left, the last chunks keep their graphs and are not run twice

A chunk that runs again draws the random numbers of its first pass (dropout) under the same autocast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from hllm import hardware

MODES = ("graph", "checkpoint", "cache")
Run = Callable[[Tensor], Tensor]  # rows of a chunk -> their vectors


@dataclass
class Chunks:
    """Vectors of the chunks `rows` (int64 each), some with a graph, the others to run again.

    run         gives a chunk's vectors (n, width)
    keep        number of chunks, the last ones, whose graphs are kept
    parameters  what the gradients are added to
    thrifty     context in which a chunk's graph takes the least memory (layers checkpointed)
    overflowed  called when memory ended in the backward pass, or layers could not be checkpointed
    backward_by  spends a gradient at a tensor, `more` telling whether another chunk follows; None: torch's own way
    retries     whether memory that ended in the backward pass is answered by running again
    vectors     (attribute) what `forward` gave
    """

    run: Run
    rows: Sequence[Tensor]
    keep: int
    device: torch.device
    parameters: Sequence[torch.nn.Parameter] = ()
    thrifty: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    overflowed: Callable[[Exception], None] = lambda err: None
    backward_by: Callable[[Tensor, Tensor, bool], None] | None = None
    retries: bool = True
    kept: dict[int, Tensor] = field(default_factory=dict)
    vectors: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    states: list[list[Tensor]] = field(default_factory=list)

    def forward(self) -> Tensor:
        """Vectors (sum of n, width) of all chunks in order, without gradient."""
        self.autocast = autocast_now(self.device)
        out = []
        for i, rows in enumerate(self.rows):
            self.states.append(random_state(self.device))
            keep = i >= len(self.rows) - self.keep
            with torch.set_grad_enabled(keep), contextlib.nullcontext() if keep else self.autocast():
                vectors = self.run(rows)
            if keep and vectors.requires_grad:
                self.kept[i] = vectors
            out.append(vectors.detach())
        self.vectors = torch.cat(out) if out else torch.zeros(0, 0, device=self.device)
        return self.vectors

    def backward(self, grad: Tensor) -> None:
        """Spend `grad`, shaped as `forward`'s result; afterwards random numbers go on as if nothing ran again.

        Where memory ends on the way, the gradients so far are dropped and every chunk runs again with its
        layers checkpointed: the same random numbers, so the same gradients. That needs gradients that were
        empty before; otherwise the error is passed on.
        """
        parts = grad.split([len(rows) for rows in self.rows])
        fresh = self.retries and all(p.grad is None for p in self.parameters)
        after = random_state(self.device)
        try:
            if not self._spend(parts, fresh):
                hardware.release_memory()
                for i, part in enumerate(parts):
                    self._again(i, part, self.thrifty())
        finally:
            set_random_state(self.device, after)

    def _spend(self, parts: Sequence[Tensor], fresh: bool) -> bool:
        """Whether memory sufficed; if not, the gradients are empty again."""
        try:
            # Kept graphs, the last parts, first: nothing runs again while they are there.
            for i in reversed(range(len(parts))):
                if i in self.kept:
                    self._spend_at(self.kept.pop(i), parts[i], i > 0)
                else:
                    self._again(i, parts[i], contextlib.nullcontext())
            return True
        except Exception as err:
            unlike = isinstance(err, CheckpointError)  # layers saved other tensors when they ran again
            if not fresh or not (unlike or hardware.is_out_of_memory(err)):
                raise
            if unlike:
                self.thrifty = contextlib.nullcontext
            self.overflowed(err)
        self.kept.clear()
        for p in self.parameters:
            p.grad = None
        return False

    def _again(self, i: int, grad: Tensor, context: contextlib.AbstractContextManager[None]) -> None:
        """Run chunk `i` with its graph, as the first time, and spend its gradient."""
        set_random_state(self.device, self.states[i])
        with torch.enable_grad(), self.autocast(), context:
            vectors = self.run(self.rows[i])
        if vectors.requires_grad:
            self._spend_at(vectors, grad, i > 0)

    def _spend_at(self, vectors: Tensor, grad: Tensor, more: bool) -> None:
        grad = grad.to(vectors.dtype)
        if self.backward_by is None:
            vectors.backward(grad)
        else:
            self.backward_by(vectors, grad, more)


def autocast_now(device: torch.device) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """The autocast in force, to enter again: a backward pass usually runs outside of it.

    Casts of weights are not remembered: older torch takes up those made without a graph where one is needed
    (pytorch#112583), and their weights would get no gradient.
    """
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype, enabled, cache_enabled=False)


def random_state(device: torch.device) -> list[Tensor]:
    """States of the random generators that a forward pass may draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Put `random_state` back."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def plan_chunks(costs: Tensor, budget: int) -> list[Tensor]:
    """Positions int64 of each chunk, shortest texts first, of at most `budget` tokens (or one text).

    `costs` int64 (n,) on the CPU: tokens of each text. The longest come last: their chunks are the ones
    that keep their graphs, and texts of one length share a chunk.
    """
    order = torch.argsort(costs, stable=True)
    chunks, start, used = [], 0, 0
    for end, cost in enumerate(costs[order].tolist()):
        if end > start and used + cost > budget:
            chunks.append(order[start:end])
            start, used = end, 0
        used += cost
    return [*chunks, order[start:]] if len(order) else chunks


@contextlib.contextmanager
def counting_saved(found: list[int], parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Append to `found` the bytes that the graphs made inside keep for their backward passes."""
    seen = {p.untyped_storage().data_ptr() for p in parameters}
    total = 0

    def note(x: Tensor) -> Tensor:
        nonlocal total
        storage = x.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        yield
    found.append(total)


@dataclass(frozen=True)
class Plan:
    """How a step's items are encoded: a mode, tokens to a chunk, and tokens whose graphs are kept."""

    mode: str
    chunk_tokens: int
    keep_tokens: int

    def __str__(self) -> str:
        kept = (
            f", {self.keep_tokens:,} tokens' graphs kept" if self.mode == "cache" and self.keep_tokens else ""
        )
        return f"{self.mode}, chunks of {self.chunk_tokens:,} tokens{kept}"

    def smaller(self, checkpoints: bool) -> Plan:
        """The next plan that takes less memory."""
        if self.mode == "graph" and checkpoints:
            return Plan("checkpoint", self.chunk_tokens, 0)
        if self.mode != "cache" or self.keep_tokens:
            return Plan("cache", self.chunk_tokens, 0)
        return Plan("cache", max(1, self.chunk_tokens // 2), 0)


def choose_plan(
    tokens: int, per_token: float, checkpointed: float | None, n_layers: int, room: float, chunk: int
) -> Plan:
    """The cheapest plan that fits in `room` bytes.

    per_token     bytes that a token's whole graph keeps; `checkpointed` those of its layers' inputs alone,
                  None where layers cannot be checkpointed
    chunk         tokens to a chunk at most
    """
    if tokens * per_token <= room:
        return Plan("graph", chunk, tokens)
    if checkpointed is not None and tokens * checkpointed + chunk * per_token / n_layers <= room:
        return Plan("checkpoint", chunk, 0)
    fitting = int(room / max(per_token, 1.0))
    chunk = max(1, min(chunk, fitting))
    return Plan("cache", chunk, max(0, fitting - chunk))


def free_memory(device: torch.device) -> float:
    """Bytes that tensors may still take on `device`; infinite where that cannot be asked."""
    import os

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # no sysconf on Windows
        return float("inf")

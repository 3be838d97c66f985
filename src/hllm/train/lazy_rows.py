"""AdamW for the rows of a large embedding that touches only the rows a step needs.

Dense AdamW moves every row at every step, those without a gradient too: their momentum runs out,
they decay, and the weight average follows them. Over k idle steps all of that has a closed form, so
a row is caught up at once when it is needed again, at a cost that depends neither on k nor on the
number of rows. Sparse Adam leaves these moves out, and rare rows then learn several times slower.

An idle row with moments m, v after step s moves at step i by -lr_i b_i r^(i-s) m / sqrt(v), where
r = beta1 / sqrt(beta2) and b_i = sqrt(1 - beta2^i) / (1 - beta1^i) corrects the bias. The factors of
m / sqrt(v) are the same for all rows last touched at s: `History` keeps their sum for every s.
AdamW's eps stays while v runs down, so where it outweighs sqrt(v) the powers are of beta1 instead of
r; in between, the sums are interpolated by eps / (sqrt(v) + eps).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hllm.errors import ArtifactError, ConfigError

TAIL = 1e-9  # momentum is followed until this share of its first move is left: 218 steps with (0.9, 0.98)
CAPACITY = 1024  # steps that the history has room for at first; doubled when full
SLICE = 1 << 16  # rows caught up at a time when all are read


class LazyRows:
    """AdamW (Loshchilov and Hutter, 2019) and weight average over the leased rows of `weight` (n, d).

    A step is `lease(rows)`, then the rows' values are read, then `step(rows, gradient, rate)`. Rows
    are int64 (M,) and distinct. Where some only fill up a fixed M, `valid` bool (M,) is False for
    them; they then stand for row 0, padding, which must not be among the valid ones. Sorted rows are
    read faster, and `index_select` reads them several times faster than indexing. Nothing waits for the
    device, and the same rows, gradients and rates give the same bits however often
    `caught_up` and `state_dict` are called in between.

    betas, eps, weight_decay   as of torch.optim.AdamW. Bias correction is by the common step
    ema_decay                  of the average, with the warm-up of `WeightAverage`; None or 0: none
    """

    def __init__(
        self,
        weight: Tensor,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        ema_decay: float | None = None,
    ) -> None:
        self.weight, self.betas, self.eps, self.weight_decay = weight.detach(), betas, eps, weight_decay
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.last_step = torch.zeros(weight.shape[0], dtype=torch.long, device=weight.device)
        self.average = self.weight.clone() if ema_decay else None
        self.history = History(betas, weight_decay, ema_decay or 0.0, weight.device)

    @torch.no_grad()
    def lease(self, rows: Tensor, valid: Tensor | None = None) -> None:
        """Bring `rows` to the present step, in place. To be called before their values are read."""
        if valid is not None:
            rows = rows.where(valid, 0)
        weight, average, exp_avg, exp_avg_sq = self._moved(rows)
        self.weight.index_copy_(0, rows, weight)
        if self.average is not None and average is not None:
            self.average.index_copy_(0, rows, average)
        self.exp_avg.index_copy_(0, rows, exp_avg)
        self.exp_avg_sq.index_copy_(0, rows, exp_avg_sq)
        self.last_step.index_fill_(0, rows, self.history.steps)

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor, rate: float, valid: Tensor | None = None) -> None:
        """One step of AdamW on the leased `rows`; `gradient` (M, d) is the loss's, `rate` the learning rate.

        Call it at every step of training, with no rows where none had a gradient. Raises ConfigError
        where the rate times the weight decay reaches 1.
        """
        if valid is not None:
            rows, gradient = rows.where(valid, 0), gradient.masked_fill(~valid.unsqueeze(1), 0)
        keep = self.history.append(rate)
        (beta1, beta2), n = self.betas, self.history.steps
        exp_avg = self.exp_avg.index_select(0, rows).lerp_(gradient, 1 - beta1)
        exp_avg_sq = (
            self.exp_avg_sq.index_select(0, rows).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        )
        scale = (exp_avg_sq.sqrt() / math.sqrt(1 - beta2**n)).add_(self.eps)
        weight = self.weight.index_select(0, rows).mul_(1 - rate * self.weight_decay)
        weight.addcdiv_(exp_avg, scale, value=-rate / (1 - beta1**n))
        self.exp_avg.index_copy_(0, rows, exp_avg)
        self.exp_avg_sq.index_copy_(0, rows, exp_avg_sq)
        self.weight.index_copy_(0, rows, weight)
        if self.average is not None:
            self.average.index_copy_(0, rows, self.average.index_select(0, rows).lerp_(weight, 1 - keep))
        self.last_step.index_fill_(0, rows, n)

    @torch.no_grad()
    def caught_up(self, average: bool = False, rows: Tensor | None = None) -> Tensor:
        """A copy of all rows (n, d), or of `rows`, as they or their average would be now. Changes nothing.

        For validating and saving: bits must not depend on when that happens, so `lease` is not for them.
        """
        source = self.average if average else self.weight
        if source is None:
            raise ConfigError("these rows have no average; give an ema_decay above 0")
        if rows is None:
            rows = torch.arange(len(source), device=source.device)
        out = source.new_empty(len(rows), source.shape[1])
        for some, place in zip(rows.split(SLICE), out.split(SLICE), strict=True):
            weight, mean, _, _ = self._moved(some)
            place.copy_(mean if average and mean is not None else weight)
        return out

    def _moved(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Weight, average and the two moments (M, d) of `rows` at the present step."""
        weight = self.weight.index_select(0, rows)
        exp_avg, exp_avg_sq = self.exp_avg.index_select(0, rows), self.exp_avg_sq.index_select(0, rows)
        since = self.history.since(self.last_step.index_select(0, rows), weight.dtype)
        scale = exp_avg_sq.sqrt().add_(self.eps)
        ratio, floor = exp_avg / scale, self.eps / scale
        average = None
        if self.average is not None:
            average = self.average.index_select(0, rows).mul_(since.average_keep)
            average += since.average_weight * weight
            average -= torch.lerp(since.average_pull, since.average_floor_pull, floor).mul_(ratio)
        weight.sub_(torch.lerp(since.pull, since.floor_pull, floor).mul_(ratio)).mul_(since.shrink)
        return weight, average, exp_avg.mul_(since.first_moment), exp_avg_sq.mul_(since.second_moment)

    def state_dict(self) -> dict[str, Tensor]:
        """All but the weight, by name: rows as they are and the step of their last update, none caught up."""
        state = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "last_step": self.last_step}
        if self.average is not None:
            state["average"] = self.average
        return state | {"history": self.history.values()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave. Raises ArtifactError if it is not of such rows."""
        own = self.state_dict()
        shapes = {name: tuple(value.shape) for name, value in own.items() if name != "history"}
        given = {name: tuple(value.shape) for name, value in state.items()}
        if given.pop("history", (0,))[0] != 7 or given != shapes:
            raise ArtifactError(
                f"the saved rows {given} do not fit a table of {tuple(self.weight.shape)}; start a new run"
            )
        for name in shapes:
            own[name].copy_(state[name])
        self.history.load(state["history"])


class Since(NamedTuple):
    """What the steps since their last one did to rows, each (M, 1).

    A weight w is now `shrink` * (w - `pull` * ratio), where ratio = m / (sqrt(v) + eps), and its average
    `average_keep` * average + `average_weight` * w - `average_pull` * ratio; the `floor` pulls take the
    place of these where v is nothing beside eps. Moments are multiplied by theirs.
    """

    shrink: Tensor
    average_keep: Tensor
    average_weight: Tensor
    pull: Tensor
    floor_pull: Tensor
    average_pull: Tensor
    average_floor_pull: Tensor
    first_moment: Tensor
    second_moment: Tensor


class History:
    """Seven numbers for every step s, from which `since` has what happened to idle rows in O(1).

    0    log of the product of (1 - rate x weight decay) over the steps up to s
    1    log of the product of the average's decays up to s
    2    the average, at s, of a weight of 1 that only decays, relative to that weight
    3    pull of a row last touched at s: sum over the steps i since of rate_i b_i r^(i - s), relative to
         the shrinking since s
    4    the same where eps outweighs sqrt(v): rate_i / (1 - beta1^i) beta1^(i - s)
    5, 6 what the average has of 3 and 4

    The last four grow with every step, by less and less: they are final after `window` steps. Held in
    float64 (float32 where the device has none): 56 bytes a step.
    """

    def __init__(
        self, betas: tuple[float, float], weight_decay: float, ema_decay: float, device: torch.device
    ) -> None:
        r = betas[0] / math.sqrt(betas[1])
        if not 0 <= r < 1:
            raise ConfigError(f"betas {betas} let the step of an idle row grow; use beta1 < sqrt(beta2)")
        self.betas, self.weight_decay, self.ema_decay, self.steps = betas, weight_decay, ema_decay, 0
        self.window = max(1, math.ceil(math.log(TAIL) / math.log(r))) if r else 1
        dtype = torch.float32 if device.type == "mps" else torch.float64
        steps = torch.arange(self.window, 0, -1, dtype=dtype, device=device)
        self.powers = torch.stack([r**steps, betas[0] ** steps])
        self.table = torch.zeros(7, CAPACITY, dtype=dtype, device=device)
        self.table[2, 0] = 1
        self.now = [0.0, 0.0, 1.0]  # the first three at the present step, on the host

    def append(self, rate: float) -> float:
        """Take one step at a learning rate; returns the average's decay in it."""
        shrink = 1 - rate * self.weight_decay
        if shrink <= 0:
            raise ConfigError(
                f"learning rate {rate:g} x weight decay {self.weight_decay:g} is 1 or more; lower one of them"
            )
        keep = min(self.ema_decay, (1 + self.steps) / (10 + self.steps))
        self.steps = n = self.steps + 1
        if n == self.table.shape[1]:
            self.table = torch.cat([self.table, torch.zeros_like(self.table)], dim=1)
        log_shrink, log_keep, trail = self.now
        log_keep = log_keep + math.log(keep) if keep else log_keep
        self.now = [log_shrink + math.log(shrink), log_keep, keep * trail / shrink + (1 - keep)]
        for row, value in zip(self.table, self.now, strict=False):
            row[n] = value
        beta1, beta2 = self.betas
        first = max(0, n - self.window)
        relative = torch.exp(self.now[0] - self.table[0, first:n])  # how far rows shrank since
        for kind, correction in enumerate((math.sqrt(1 - beta2**n), 1.0)):
            pull, average_pull = self.table[3 + kind, first:n], self.table[5 + kind, first:n]
            powers = self.powers[kind, self.window - (n - first) :]
            pull += powers * (rate * correction / (1 - beta1**n)) / relative
            average_pull.mul_(keep).add_((1 - keep) * relative * pull)
        return keep

    def since(self, last: Tensor, dtype: torch.dtype) -> Since:
        """Coefficients, in `dtype`, of rows last touched at the steps `last` int64 (M,)."""

        log_shrink, log_keep, trail = self.now
        final = (last + self.window).clamp(max=self.steps)  # the step up to which the pulls were summed
        at_last, at_final = self.table.index_select(1, last), self.table[:3].index_select(1, final)
        shrink, shrink_final = ((log_shrink - at[0]).exp() for at in (at_last, at_final))
        keep, keep_final = ((log_keep - at[1]).exp() for at in (at_last, at_final))
        # The average is linear in the weight: what a weight of 1 has left in it, less what it had before.
        weight_final = (trail * shrink_final - keep_final * at_final[2]) * shrink / shrink_final
        idle = self.steps - last.to(shrink.dtype)
        columns = (
            shrink,
            keep,
            trail * shrink - keep * at_last[2],
            at_last[3],
            at_last[4],
            keep_final * at_last[5] + weight_final * at_last[3],
            keep_final * at_last[6] + weight_final * at_last[4],
            self.betas[0] ** idle,
            self.betas[1] ** idle,
        )
        return Since(*(column.to(dtype).unsqueeze(1) for column in columns))

    def values(self) -> Tensor:
        """A copy (7, steps + 1) to be saved."""
        return self.table[:, : self.steps + 1].clone()

    def load(self, values: Tensor) -> None:
        """Take over what `values` gave."""
        self.steps = values.shape[1] - 1
        capacity = max(CAPACITY, 1 << (self.steps + 1).bit_length())
        self.table = self.table.new_zeros(7, capacity)
        self.table[:, : self.steps + 1] = values
        self.now = self.table[:3, self.steps].tolist()

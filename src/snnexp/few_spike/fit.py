"""Fitting few-spike coefficients to a function: a search over thresholds and resets, in which the output weights are
always the best ones.

With T and h given, the spikes z(t; x) are given, and y = sum d(t) z(t) is linear in d: d is a least-squares solution
(variable projection). What is left, the error as a function of (T, h), is rough: a step function of T. It is searched
by many chains at once that mutate single steps, shift what follows a step, and move or replace steps; ever fewer chains
go on, first on a coarse grid of inputs, then on finer ones. `descend` is the gradient descent of the paper, for
comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from snnexp.few_spike.table import FUNCTIONS, Fitted, Table, measured

Density = Callable[[Tensor], Tensor]  # of the inputs; needs no norm
STAGES = ((400, 0.6), (800, 0.28), (2400, 0.12))  # points of the grid, share of the rounds
CHAINS, MUTANTS = 32, 256  # chains at the start, candidates a round
RIDGE = 1e-6
SMALLEST_MOVE, LARGEST_MOVE = 3e-4, 0.5  # of the interval
TOO_MANY = 6.0  # log error that a spike beyond the limit costs
Report = Callable[[int, int], None]  # (rounds done, rounds in all)


@dataclass(frozen=True)
class Target:
    """The function's values y [n] on a grid x [n], with weights w [n] that sum to 1, and the most spikes on average."""

    x: Tensor
    y: Tensor
    w: Tensor
    limit: float

    @staticmethod
    def on(f: Callable[[Tensor], Tensor], interval: tuple[float, float], points: int, limit: float,
           density: Density | None) -> Target:
        low, high = interval
        x = low + (high - low) * (torch.arange(points) + 0.5) / points
        w = torch.ones_like(x) if density is None else density(x)
        return Target(x, f(x), w / w.sum(), limit)

    def project(self, T: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The best d [B, K] for each of B pairs T, h [B, K], and their costs [B]: log mean squared error, and more
        where there are too many spikes."""
        z = _trains(self.x, T, h)
        gram = torch.bmm(z * self.w, z.transpose(1, 2)).double()
        moment = ((z * self.w) @ self.y).double()
        factor, _ = torch.linalg.cholesky_ex(gram + RIDGE * torch.eye(T.shape[1], dtype=torch.float64))
        d = torch.cholesky_solve(moment.unsqueeze(2), factor).squeeze(2)
        square = (self.w * self.y.square()).sum().double()
        mse = square - 2 * (moment * d).sum(1) + torch.einsum("bi,bij,bj->b", d, gram, d)
        over = gram.diagonal(dim1=1, dim2=2).sum(1) - self.limit
        return d, (mse.clamp(min=1e-12).log() + TOO_MANY * over.clamp(min=0)).nan_to_num(nan=torch.inf)


def fit(activation: str, interval: tuple[float, float], K: int, limit: float, *, rounds: int, seed: int = 0,
        density: Density | None = None, report: Report | None = None) -> Fitted:
    """Coefficients of `activation` on `interval` in K steps, with at most `limit` spikes on average.

    Inputs count by `density` (None: uniformly). `rounds` of the search; a function of `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = interval
    start = high * 2.0 ** -torch.arange(1, K + 1)
    T, h = (start + 0.025 * (high - low) * torch.randn(CHAINS, K, generator=generator) for _ in range(2))
    done = 0
    for points, share in STAGES:
        target = Target.on(FUNCTIONS[activation], interval, points, limit, density)
        last = done + round(share * rounds)
        T, h = _searched(target, T, h, range(done, last), rounds, high - low, generator, report)
        done = last
    d, cost = target.project(T, h)
    best = int(cost.argmin())
    return measured(activation, interval, Table(T[best], h[best], d[best]))


def _searched(target: Target, T: Tensor, h: Tensor, turns: range, rounds: int, span: float,
              generator: torch.Generator, report: Report | None) -> tuple[Tensor, Tensor]:
    """Chains [I, K] after some rounds, the best state seen first: each takes its best mutant, or one a little worse."""
    _, cost = target.project(T, h)
    best, state = float("inf"), (T[:1], h[:1])
    for turn in turns:
        cooling = 1 - turn / rounds
        mutants = MUTANTS // len(T)
        new_T, new_h = _mutated(T, h, mutants, span, generator)
        _, found = target.project(new_T, new_h)
        least, which = found.view(len(T), mutants).min(1)
        row = torch.arange(len(T)) * mutants + which
        slack = 0.3 * cooling**2 * torch.rand(len(T), generator=generator) ** 3
        taken = least < cost + slack
        T = torch.where(taken[:, None], new_T[row], T)
        h = torch.where(taken[:, None], new_h[row], h)
        cost = torch.where(taken, least, cost)
        if float(cost.min()) < best:
            first = int(cost.argmin())
            best, state = float(cost[first]), (T[first : first + 1].clone(), h[first : first + 1].clone())
        kept = cost.argsort()[: int(CHAINS * cooling**1.3) + 1]
        T, h, cost = T[kept], h[kept], cost[kept]
        if report:
            report(turn + 1, rounds)
    return torch.cat([state[0], T]), torch.cat([state[1], h])


def _mutated(T: Tensor, h: Tensor, mutants: int, span: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`mutants` of each chain [I, K]: [I * mutants, K], each changed by one move."""
    T, h = T.repeat_interleave(mutants, 0), h.repeat_interleave(mutants, 0)
    B, K = T.shape
    rows = torch.arange(B)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    move = torch.randint(0, 8, (B,), generator=generator)
    step, other = torch.randint(0, K, (2, B), generator=generator)
    size = span * LARGEST_MOVE * (SMALLEST_MOVE / LARGEST_MOVE) ** uniform(B)
    a, b = size * torch.randn(2, B, generator=generator)
    zero = torch.zeros(B)
    shift_T, shift_h = torch.zeros(B, K), torch.zeros(B, K)
    shift_T[rows, step] += torch.where((move <= 1) | (move == 3) | (move == 4) | (move == 5), a, zero)  # a threshold,
    shift_h[rows, step] += torch.where((move == 2) | (move == 3), b, torch.where(move == 4, a, zero))   # a reset, both
    shift_h[rows, other] += torch.where(move == 5, b, zero)                                # or resets of two steps
    later = torch.arange(K) > step[:, None]
    shift_T += torch.where(move == 6, a, zero)[:, None] * later  # what fired moves on together with all that follows
    shift_h[rows, step] -= torch.where(move == 6, a, zero)
    T, h = T + shift_T, h + shift_h
    order = torch.arange(K).expand(B, K).float().clone()  # a step goes to another place, often as a new one
    aside = other + torch.where(other > step, 0.5, -0.5)
    order[rows, step] = torch.where(move == 7, aside, step.float())
    place = order.argsort(1)
    T, h = T.gather(1, place), h.gather(1, place)
    new = (place == step[:, None]) & ((move == 7) & (uniform(B) < 0.6))[:, None]
    model = torch.randint(0, K, (B,), generator=generator)
    T = torch.where(new, (T[rows, model] + 0.1 * span * torch.randn(B, generator=generator))[:, None], T)
    h = torch.where(new, (h[rows, model] * (0.3 + uniform(B)))[:, None], h)
    return T, h


def _trains(x: Tensor, T: Tensor, h: Tensor) -> Tensor:
    """z [B, K, n] of inputs x [n] for each of B tables."""
    z = torch.empty(*T.shape, len(x))
    v = x.expand(len(T), -1).clone()
    for t in range(T.shape[1]):
        torch.ge(v, T[:, t : t + 1], out=z[:, t])
        v.addcmul_(z[:, t], h[:, t : t + 1], value=-1)
    return z

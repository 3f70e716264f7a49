"""Fitting few-spike coefficients to a function: a search over thresholds and resets, in which the output weights are
always the best ones.

With T and h given, the spikes z(t; x) are given, and y = sum d(t) z(t) is linear in d: d is a least-squares solution
(variable projection). What is left, the error as a function of (T, h), is rough: a step function of T. It is searched
by many chains at once that mutate single steps, shift what follows a step, and move or replace steps; ever fewer chains
go on, first on a coarse grid of inputs, then on finer ones. `descend` is the gradient descent of the paper, for
comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from snnexp.few_spike.table import FUNCTIONS, Fitted, Table, measured

Density = Callable[[Tensor], Tensor]  # of the inputs; needs no norm
POINTS = (500, 1500, 4000)
GROWING, MIDDLE = 0.8, 0.15
CYCLES, CYCLING = 24, 0.5
TRIED = 1024
CHAINS, MUTANTS = 16, 64  # chains at the start, candidates a round
TOGETHER = 2**17  # candidates x points simulated at a time: what the caches hold
RIDGE = 1e-6
SMALLEST_MOVE, LARGEST_MOVE = 5e-5, 0.5  # of the interval; the largest shrinks as the search cools
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
        size = max(1, TOGETHER // len(self.x))
        parts = [self._moments(*pair) for pair in zip(T.split(size), h.split(size), strict=True)]
        gram, moment = (torch.cat(part).double() for part in zip(*parts, strict=True))
        factor, _ = torch.linalg.cholesky_ex(gram + RIDGE * torch.eye(T.shape[1], dtype=torch.float64))
        d = torch.cholesky_solve(moment.unsqueeze(2), factor).squeeze(2)
        square = (self.w * self.y.square()).sum().double()
        mse = square - 2 * (moment * d).sum(1) + torch.einsum("bi,bij,bj->b", d, gram, d)
        over = gram.diagonal(dim1=1, dim2=2).sum(1) - self.limit
        return d, (mse.clamp(min=1e-12).log() + TOO_MANY * over.clamp(min=0)).nan_to_num(nan=torch.inf)

    def _moments(self, T: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Means of z z' [B, K, K] and of z y [B, K] over the inputs."""
        z = _trains(self.x, T, h)
        weighted = z * self.w
        return torch.bmm(weighted, z.transpose(1, 2)), weighted @ self.y


def fit(activation: str, interval: tuple[float, float], K: int, limit: float, *, rounds: int, seed: int = 0,
        density: Density | None = None, report: Report | None = None) -> Fitted:
    """Coefficients of `activation` on `interval` in K steps, with at most `limit` spikes on average.

    Inputs count by `density` (None: uniformly). `rounds` of the search; a function of `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    f, low, high = FUNCTIONS[activation], *interval
    coarse, middle, fine = (Target.on(f, interval, points, limit, density) for points in POINTS)
    T = high * torch.rand(CHAINS, 1, generator=generator)
    search = _Search(high - low, rounds, generator, report)
    h = T.clone()
    for k in range(2, K + 1):
        T, h = _grown(coarse, T, h, high - low, generator)
        T, h = search(coarse, T, h, round(GROWING * rounds * k / (K * K)), CHAINS, 1.0)
    for c in range(CYCLES):
        _, cost = coarse.project(T, h)
        T2, h2 = _shrunk(coarse, T, h, generator)
        T2, h2 = _grown(coarse, T2, h2, high - low, generator)
        T2, h2 = search(coarse, T2, h2, round(CYCLING * rounds / CYCLES), CHAINS, 0.5 * (1 - c / CYCLES))
        _, cost2 = coarse.project(T2, h2)
        b = (cost2 < cost)[:, None]
        if (c + 1) % (CYCLES // 4) == 0:
            pass
        T, h = torch.where(b, T2, T), torch.where(b, h2, h)
        worst, bestc = int(torch.minimum(cost, cost2).argmax()), int(torch.minimum(cost, cost2).argmin())
        if c % 4 == 3:
            T[worst], h[worst] = T[bestc], h[bestc]
    T, h = search(middle, T, h, round(MIDDLE * rounds), 3, 0.5)
    T, h = search(fine, T, h, round((1 - GROWING - MIDDLE) * rounds), 1, 0.2)
    d, cost = fine.project(T, h)
    best = int(cost.argmin())
    return measured(activation, interval, Table(T[best], h[best], d[best]))


def _shrunk(target, T, h, generator):
    I, K = T.shape
    keep = torch.stack([torch.cat([torch.arange(i), torch.arange(i + 1, K)]) for i in range(K)])  # [K, K-1]
    index = keep.repeat(I, 1)
    T, h = T.repeat_interleave(K, 0).gather(1, index), h.repeat_interleave(K, 0).gather(1, index)
    _, cost = target.project(T, h)
    row = torch.arange(I) * K + (cost.view(I, K) + torch.randn(I, K, generator=generator)).argmin(1)
    return T[row], h[row]


def _grown(target, T, h, span, generator):
    I, k = T.shape
    M = TRIED // I
    T, h = T.repeat_interleave(M, 0), h.repeat_interleave(M, 0)
    B = len(T)
    at = torch.randint(0, k + 1, (B, 1), generator=generator)
    model = torch.randint(0, k, (B, 1), generator=generator)
    new_T = T.gather(1, model) + 0.15 * span * torch.randn(B, 1, generator=generator)
    new_h = h.gather(1, model) * 2 * torch.rand(B, 1, generator=generator) + 0.02 * span * torch.randn(B, 1, generator=generator)
    order = torch.cat([torch.arange(k).expand(B, k).float(), at - 0.5], 1).argsort(1)
    T, h = torch.cat([T, new_T], 1).gather(1, order), torch.cat([h, new_h], 1).gather(1, order)
    _, cost = target.project(T, h)
    row = torch.arange(I) * M + cost.view(I, M).argmin(1)
    return T[row], h[row]


class _Search:
    def __init__(self, span, rounds, generator, report):
        self.span, self.rounds, self.g, self.report, self.done = span, rounds, generator, report, 0

    def __call__(self, target, T, h, rounds, chains, heat):
        _, cost = target.project(T, h)
        kept = cost.argsort()[:chains]
        T, h, cost = T[kept], h[kept], cost[kept]
        best, bT, bh = cost.clone(), T.clone(), h.clone()
        M = MUTANTS // len(T)
        for turn in range(rounds):
            cool = heat * (1 - turn / rounds)
            nT, nh = _mutated(T, h, M, self.span, cool, self.g)
            _, found = target.project(nT, nh)
            least, which = found.view(len(T), M).min(1)
            row = torch.arange(len(T)) * M + which
            taken = least < cost + 0.2 * cool**2 * torch.rand(len(T), generator=self.g) ** 3
            T = torch.where(taken[:, None], nT[row], T); h = torch.where(taken[:, None], nh[row], h)
            cost = torch.where(taken, least, cost)
            b = cost < best
            best = torch.where(b, cost, best); bT = torch.where(b[:, None], T, bT); bh = torch.where(b[:, None], h, bh)
        return bT, bh


def _searched(target: Target, T: Tensor, h: Tensor, turns: range, rounds: int, span: float,
              generator: torch.Generator, report: Report | None) -> tuple[Tensor, Tensor]:
    """Chains [I, K] after some rounds, the best state seen first: each takes its best mutant, or one a little worse."""
    _, cost = target.project(T, h)
    best, state = float("inf"), (T[:1], h[:1])
    for turn in turns:
        cooling = 1 - turn / rounds
        mutants = MUTANTS // len(T)
        new_T, new_h = _mutated(T, h, mutants, span, cooling, generator)
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


def _mutated(T: Tensor, h: Tensor, mutants: int, span: float, cooling: float,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`mutants` of each chain [I, K]: [I * mutants, K], each changed by one move."""
    T, h = T.repeat_interleave(mutants, 0), h.repeat_interleave(mutants, 0)
    B, K = T.shape
    rows = torch.arange(B)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    move = torch.randint(0, 8, (B,), generator=generator)
    step, other = torch.randint(0, K, (2, B), generator=generator)
    largest = 0.02 + LARGEST_MOVE * cooling**2
    size = span * largest * (SMALLEST_MOVE / largest) ** uniform(B)
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

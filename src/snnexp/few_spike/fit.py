"""The fit of few-spike coefficients to a function: a search over thresholds and resets with optimal output weights.

T and h determine the spikes z(t; x), and y = sum d(t) z(t) is linear in d: d is a least-squares solution (variable
projection). The remaining error is a rough function of (T, h), constant in pieces along T. A few chains search it at
the same time; in each round a chain takes the best of many mutants, or, while it is hot, one that is a little worse:

1. grow: from one step to K; the best of many random new steps is inserted;
2. renew: remove a step that contributes little, insert the best of many new ones, search nearby; kept if better;
3. refine the best chains with smaller and smaller moves on finer grids of inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from snnexp.activations import Interval, named
from snnexp.few_spike.table import Coefficients, Fitted, measured

Density = Callable[[Tensor], Tensor]  # weight of each input; need not be normalised
POINTS = (500, 1500, 4000)  # of the grids
GROWING, RENEWING, REFINING = 0.15, 0.45, (0.1, 0.3)  # shares of the rounds
CHAINS, MUTANTS, NEW = 8, 128, 1024  # candidates per round, and for a new step, in all chains together
CYCLE = 6  # rounds after a renewed step
TOGETHER = 2**17  # candidates x points simulated at a time, as many as the caches hold
RIDGE = 1e-6
SMALLEST_MOVE, LARGEST_MOVE = 5e-5, 0.5  # shares of the interval; the largest move shrinks as the search cools
SLACK = 0.2  # by which a move may raise the log error of a hot chain
RENEWED_SLACK = 0.3  # by which a renewed step may raise it
EXCHANGE = 12  # renewals after which the best chain replaces the worst
TOO_MANY = 6.0  # increase of the log error for each spike beyond the limit
ShowRounds = Callable[[int, int], None]  # (rounds done, total rounds)


@dataclass(frozen=True)
class Target:
    """The function's values y [n] on a grid x [n], with weights w [n] that sum to 1, and the limit of mean spikes."""

    x: Tensor
    y: Tensor
    w: Tensor
    limit: float

    @staticmethod
    def on(
        f: Callable[[Tensor], Tensor], interval: Interval, points: int, limit: float, density: Density | None
    ) -> Target:
        """Return the target on a grid of `points` in the interval."""
        low, high = interval
        x = low + (high - low) * (torch.arange(points) + 0.5) / points
        w = torch.ones_like(x) if density is None else density(x)
        return Target(x, f(x), w / w.sum(), limit)

    def project(self, T: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best d [B, K] for each of B pairs T, h [B, K], and their costs [B]: the log mean squared error,
        plus a penalty for too many spikes."""
        size = max(1, TOGETHER // len(self.x))
        parts = [self._moments(*pair) for pair in zip(torch.split(T, size), torch.split(h, size), strict=True)]
        gram, moment = (torch.cat(part).double() for part in zip(*parts, strict=True))
        factor, _ = torch.linalg.cholesky_ex(gram + RIDGE * torch.eye(T.shape[1], dtype=torch.float64))
        d = torch.cholesky_solve(moment.unsqueeze(2), factor).squeeze(2)
        square = (self.w * self.y.square()).sum().double()
        mse = square - 2 * (moment * d).sum(1) + torch.einsum("bi,bij,bj->b", d, gram, d)
        over = gram.diagonal(dim1=1, dim2=2).sum(1) - self.limit
        return d, (mse.clamp(min=1e-12).log() + TOO_MANY * over.clamp(min=0)).nan_to_num(nan=torch.inf)

    def chains(self, T: Tensor, h: Tensor) -> _Chains:
        """Return the chains with these thresholds and resets, with their costs."""
        return _Chains(T, h, self.project(T, h)[1])

    def _moments(self, T: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means of z z' [B, K, K] and of z y [B, K] over the inputs."""
        z = _trains(self.x, T, h)
        weighted = z * self.w
        return torch.bmm(weighted, z.transpose(1, 2)), weighted @ self.y


def fit_table(
    activation: str,
    interval: Interval,
    K: int,
    limit: float,
    *,
    rounds: int,
    seed: int = 0,
    density: Density | None = None,
    report: ShowRounds | None = None,
) -> Fitted:
    """Return coefficients of `activation` on `interval` for K steps, with at most `limit` spikes on average.

    Inputs are weighted by `density` (None: uniformly). The search has `rounds` rounds and is determined by `seed`.
    Raises InvalidValue for an unknown activation.
    """
    f = named(activation).function
    coarse, middle, fine = (Target.on(f, interval, points, limit, density) for points in POINTS)
    search = _Search(interval, torch.Generator().manual_seed(seed), rounds, report)
    T = interval[1] * torch.rand(CHAINS, 1, generator=search.generator)
    chains = coarse.chains(T, T)
    for k in range(2, K + 1):
        chains = search.around(coarse, search.grown(coarse, chains), round(GROWING * rounds * 2 * k / K**2), 1.0)
    best, cycles = chains, round(RENEWING * rounds / CYCLE) if K > 1 else 0  # one step cannot be renewed
    for turn in range(cycles):
        hot = 1 - turn / cycles
        renewed = search.around(coarse, search.grown(coarse, search.shrunk(coarse, chains)), CYCLE, 0.5 * hot)
        chains = chains.or_better(renewed, RENEWED_SLACK * hot * torch.rand(CHAINS, generator=search.generator))
        best = best.or_better(chains)
        if turn % EXCHANGE == EXCHANGE - 1:
            chains = chains.without_worst()
    chains = search.around(middle, best.best(middle, 3), round(REFINING[0] * rounds), 0.5)
    chains = search.around(fine, chains.best(fine, 1), round(REFINING[1] * rounds), 0.25)
    d, _ = fine.project(chains.T, chains.h)
    return measured(activation, interval, Coefficients(chains.T[0], chains.h[0], d[0]))


class _Chains(NamedTuple):
    """T and h [I, K] of I chains, and their costs [I]."""

    T: Tensor
    h: Tensor
    cost: Tensor

    def or_better(self, other: _Chains, slack: float | Tensor = 0.0) -> _Chains:
        """Return each chain, or the other one where it is better, or worse by less than `slack`."""
        better = other.cost < self.cost + slack
        pairs = zip(other, self, strict=True)
        return _Chains(*(torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, old) for new, old in pairs))

    def rows(self, row: Tensor) -> _Chains:
        """Return the chains with these indices."""
        return _Chains(*(part[row] for part in self))

    def without_worst(self) -> _Chains:
        """Return the chains with a second copy of the best in place of the worst."""
        row = torch.arange(len(self.cost))
        row[self.cost.argmax()] = self.cost.argmin()
        return self.rows(row)

    def best(self, target: Target, count: int) -> _Chains:
        """Return the best `count` chains on `target`."""
        chains = target.chains(self.T, self.h)
        return chains.rows(chains.cost.argsort()[:count])


@dataclass
class _Search:
    """The random moves of the search, and its progress in rounds."""

    interval: Interval
    generator: torch.Generator
    rounds: int
    report: ShowRounds | None
    done: int = 0

    @property
    def span(self) -> float:
        return self.interval[1] - self.interval[0]

    def around(self, target: Target, chains: _Chains, rounds: int, heat: float) -> _Chains:
        """Return the best state of each chain in some rounds of search; `heat` in [0, 1] cools down to 0."""
        best, mutants = chains, MUTANTS // len(chains.T)
        for turn in range(rounds):
            hot = heat * (1 - turn / rounds)
            found = self._best_of(target.chains(*self._mutated(chains, mutants, hot)), mutants)
            slack = SLACK * hot**2 * torch.rand(len(found.cost), generator=self.generator) ** 3
            chains = chains.or_better(found, slack)
            best = best.or_better(chains)
            self.done += 1
            if self.report:
                self.report(min(self.done, self.rounds), self.rounds)
        return best

    def grown(self, target: Target, chains: _Chains) -> _Chains:
        """Return chains [I, K + 1], each with the best of many random steps inserted somewhere."""
        T, h = (part.repeat_interleave(NEW // len(part), 0) for part in chains[:2])
        B, k = T.shape
        at, model = (torch.randint(0, high, (B, 1), generator=self.generator) for high in (k + 1, k))
        new_T = T.gather(1, model) + 0.15 * self.span * self._normal(B, 1)
        scale = 2 * torch.rand(B, 1, generator=self.generator)
        new_h = scale * h.gather(1, model) + 0.02 * self.span * self._normal(B, 1)
        order = torch.cat([torch.arange(k).expand(B, k).float(), at - 0.5], 1).argsort(1)
        T, h = (torch.cat(pair, 1).gather(1, order) for pair in ((T, new_T), (h, new_h)))
        return self._best_of(target.chains(T, h), B // len(chains.T))

    def shrunk(self, target: Target, chains: _Chains) -> _Chains:
        """Return chains [I, K - 1], each without a step, drawn at random in favour of steps that contribute little."""
        K = chains.T.shape[1]
        others = torch.stack([torch.arange(K - 1) + (torch.arange(K - 1) >= i) for i in range(K)])  # [K, K - 1]
        T, h = (part.repeat_interleave(K, 0).gather(1, others.repeat(len(part), 1)) for part in chains[:2])
        without = target.chains(T, h)
        return self._best_of(without._replace(cost=without.cost + self._normal(len(without.cost))), K)

    def _best_of(self, candidates: _Chains, each: int) -> _Chains:
        """Return the best of every `each` consecutive candidates."""
        which = candidates.cost.view(-1, each).argmin(1)
        return candidates.rows(torch.arange(len(which)) * each + which)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _mutated(self, chains: _Chains, mutants: int, hot: float) -> tuple[Tensor, Tensor]:
        """Return T and h [I * mutants, K], `mutants` of each chain [I, K], each changed by one random move.

        A move changes a threshold, a reset, both at one step (independently or by the same amount), a threshold at one
        step and a reset at another, or, by the same amount, a reset downwards and all later thresholds upwards.
        """
        T, h = (part.repeat_interleave(mutants, 0) for part in chains[:2])
        B, K = T.shape
        move = torch.randint(0, 6, (B, 1), generator=self.generator)
        step, other = one_hot(torch.randint(0, K, (2, B), generator=self.generator), K)
        largest = 0.02 + LARGEST_MOVE * hot**2
        size = self.span * largest * (SMALLEST_MOVE / largest) ** torch.rand(B, 1, generator=self.generator)
        a, b = size * self._normal(2, B, 1)
        later = step.cumsum(1) - step
        T = T + a * torch.where(move == 5, later, step * (move != 1))
        h = h + b * (step * ((move == 1) | (move == 2)) + other * (move == 4))
        return T, h + a * step * ((move == 3).int() - (move == 5).int())


def _trains(x: Tensor, T: Tensor, h: Tensor) -> Tensor:
    """Return the spikes z [B, K, n] for inputs x [n] and each of B tables."""
    z = torch.empty(*T.shape, len(x))
    v = x.expand(len(T), -1).clone()
    for t in range(T.shape[1]):
        torch.ge(v, T[:, t : t + 1], out=z[:, t])
        v.addcmul_(z[:, t], h[:, t : t + 1], value=-1)
    return z

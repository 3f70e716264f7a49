"""What `mitigation=` builds, and a converted network that has one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from snnexp.conversion.network import Converted, Simulation, joined
from snnexp.conversion.neuron import ScaledIF
from snnexp.errors import UserError, integer, require
from snnexp.timefold import unfold


class Mitigation:
    """Nothing, `mitigation=none`: what the others change.

    `before`: steps that the whole network runs ahead of those that count. `again`: how many of its first inputs a site
    hears before them, `rounds` times. `whole`: a site answers when it has heard everything.
    """

    before = 0
    again = 0
    rounds = 0
    whole = False

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return type(self) is Mitigation

    def neuron(self, placed: ScaledIF) -> ScaledIF:
        """What stands for the neuron that a conversion has placed."""
        return placed

    def rehearsed(self, neuron: ScaledIF, state: Any) -> Any:
        """State with which the steps that count begin, from that after the `before` steps."""
        raise NotImplementedError

    def applied(self, snn: Converted) -> Converted:
        """A network with it; `snn` stays as it is, and shares nothing. Raises UserError at other neurons than ours."""
        return snn if self.idle else Mitigated(snn, self)

    def check(self, T: int) -> None:
        """Raises InvalidValue for a T that is too short."""
        require(self.again <= T, "rehearse", self.again, f"at most T = {T}: the first of the T steps are rehearsed")

    def steps(self, T: int) -> int:
        """Steps for which each neuron works, T of which count."""
        return self.before + self.rounds * self.again + T

    def latency(self, T: int, depth: int) -> int:
        """Steps until the answer is there, in a network of `depth` sites one after the other."""
        return depth * T if self.whole else self.before + depth * self.rounds * self.again + T


class Mitigated(Converted):
    """A converted network with a mitigation; as `Converted`, but that it has no `stream`."""

    def __init__(self, snn: Converted, mitigation: Mitigation) -> None:
        super().__init__(copy.deepcopy(snn.network), snn.T, snn.rows)
        self.mitigation = mitigation
        for site in self.flow.sites:
            placed = self.flow.module(site)
            if type(placed) is not ScaledIF:
                raise UserError(
                    f"mitigation= takes integrate-and-fire neurons, and layer {site.target} has a "
                    f"{type(placed).__name__}: choose mitigation=none, or another conversion"
                )
            self.flow.replace(site, mitigation.neuron(placed))

    def latency(self, T: int) -> int:
        return self.mitigation.latency(T, self.flow.levels[self.flow.output])

    @torch.no_grad()
    def at(self, x: Tensor, steps: Sequence[int]) -> list[Any]:
        if self.mitigation.whole and len(steps) > 1:  # what it emits depends on T
            return [self.at(x, [t])[0] for t in steps]
        T = max(integer("T", t, at_least=1) for t in steps)
        _, images = self._parts(T)
        found = []
        for part in torch.split(x, images):
            env, _ = self._simulated(part, T, free=True)
            found.append([self._answer(env, t, T) for t in steps])
        return [joined(parts) for parts in zip(*found, strict=True)]

    def stream(self, x: Tensor) -> Any:
        raise UserError("a network with a mitigation has no stream: it rehearses, or waits; use snn.at(x, steps)")

    @torch.no_grad()
    def simulated(self, x: Tensor, T: int) -> Simulation:
        env, simulation = self._simulated(x, T)
        self.flow.run(self.flow.tail, env, T)
        if again := self.mitigation.again:
            heard = {
                node: unfold(env[node], T)[:again].flatten(0, 1)
                for node in self.flow.body
                if isinstance(env[node], Tensor)
            }
            simulation.before.extend([heard] * self.mitigation.rounds)
        return simulation

    def _simulated(self, x: Tensor, T: int, free: bool = False) -> tuple[dict[fx.Node, Any], Simulation]:
        """Values up to the last sites; with `free`, of what the tail needs alone."""
        flow, mitigation = self.flow, self.mitigation
        mitigation.check(T)
        env: dict[fx.Node, Any] = {flow.placeholder: x}
        flow.run(flow.head, env)
        state: dict[fx.Node, Any] = {}
        before = []
        if mitigation.before:
            rehearsal, after = dict(env), dict(state)
            flow.run(flow.body, rehearsal, mitigation.before, after, free)
            before.append(rehearsal)
            for site in flow.sites:
                neuron = flow.module(site)
                assert isinstance(neuron, ScaledIF)
                state[site] = mitigation.rehearsed(neuron, after[site])
        flow.run(flow.body, env, T, state, free)
        return env, Simulation(env, state, before)

    def _answer(self, env: dict[fx.Node, Any], t: int, T: int) -> Any:
        """The output from the means over the first t of T steps."""
        flow = self.flow
        means = {n: env[n] for n in (flow.placeholder, *flow.head)} | {
            n: unfold(env[n], T)[:t].mean(0) for n in flow.emitting
        }
        flow.run(flow.tail, means)
        return fx.map_arg(flow.output.args[0], means.__getitem__)

"""`Mitigation`, which `mitigation=` builds, and `Mitigated`, a converted network with a mitigation."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from snnexp.conversion.network import Converted, Simulation
from snnexp.conversion.neuron import ScaledIF, integrator
from snnexp.conversion.stored import Settings
from snnexp.errors import UserError, integer, require
from snnexp.timefold import unfold


class Mitigation(Settings):
    """No mitigation, `mitigation=none`, and the base class of the others.

    `before`: steps that the whole network runs before the steps that count. `again`: how many of its first steps each
    site rehearses, `rounds` times, before the steps that count. `whole`: a site fires only after its whole input.
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
        """Return the neuron that replaces the one placed by a conversion."""
        return placed

    def rehearsed(self, neuron: ScaledIF, state: Any) -> Any:
        """Return the state in which the steps that count begin, from the state after the `before` steps."""
        raise NotImplementedError

    def applied(self, snn: Converted) -> Converted:
        """Return a network with the mitigation, which shares nothing with `snn`.

        Raises UserError, naming the layer, for neurons other than plain integrate-and-fire neurons.
        """
        return snn if self.idle else Mitigated(snn, self)

    def check(self, T: int) -> None:
        """Raise InvalidValue for a T that is too small."""
        require(self.again <= T, "rehearse", self.again, f"at most T = {T}: the first of the T steps are rehearsed")

    def steps(self, T: int) -> int:
        """Return the number of steps that each neuron runs so that T steps count."""
        return self.before + self.rounds * self.again + T

    def latency(self, T: int, depth: int) -> int:
        """Return the number of steps until the answer, in a network of `depth` sites one after the other."""
        return depth * T if self.whole else self.before + depth * self.rounds * self.again + T


class Replaced(ScaledIF):
    """An integrate-and-fire neuron that a mitigation changes: its state is a tuple that begins with v."""

    integrates = False

    def __init__(self, placed: ScaledIF) -> None:
        super().__init__(placed.theta, placed.v_init, placed.bias)

    def residual(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0]


class Mitigated(Converted):
    """A converted network with a mitigation: a `Converted` without `stream`."""

    def __init__(self, snn: Converted, mitigation: Mitigation) -> None:
        super().__init__(copy.deepcopy(snn.network), snn.T, snn.rows)
        self.mitigation = mitigation
        for site in self.flow.sites:
            placed = integrator(self.flow, site, "mitigation= (other than none)")
            self.flow.replace(site, mitigation.neuron(placed))

    def latency(self, T: int) -> int:
        return self.mitigation.latency(T, self.flow.levels[self.flow.output])

    @torch.no_grad()
    def at(self, x: Tensor, steps: Sequence[int]) -> list[Any]:
        if self.mitigation.whole and len(steps) > 1:  # the trains depend on T
            return [self.at(x, [t])[0] for t in steps]
        T = max(integer("T", t, at_least=1) for t in steps)
        _, images = self._parts(T)
        found = []
        for part in torch.split(x, images):
            env, _ = self._simulated(part, T, free=True)
            found.append([self._answer(env, t, T) for t in steps])
        return [self._joined(parts) for parts in zip(*found, strict=True)]

    def stream(self, x: Tensor) -> Any:
        raise UserError("a network with a mitigation has no stream: it rehearses, or waits; use snn.at(x, steps)")

    @torch.no_grad()
    def simulated(self, x: Tensor, T: int) -> Simulation:
        env, simulation = self._simulated(x, T)
        self.flow.run(self.flow.tail, env, T)
        if again := self.mitigation.again:
            signals = [node for node in self.flow.body if isinstance(env[node], Tensor)]
            heard = {node: unfold(env[node], T)[:again].flatten(0, 1) for node in signals}
            simulation.before.extend([heard] * self.mitigation.rounds)
        return simulation

    def _simulated(self, x: Tensor, T: int, free: bool = False) -> tuple[dict[fx.Node, Any], Simulation]:
        """Return the values of all nodes up to the last sites; with `free`, only those that the tail needs."""
        flow, mitigation = self.flow, self.mitigation
        mitigation.check(T)
        env, state, before = flow.values(x, flow.head), dict[fx.Node, Any](), []
        if mitigation.before:
            rehearsal, after = dict(env), dict(state)
            flow.run(flow.body, rehearsal, mitigation.before, after, free)
            before.append(rehearsal)
            for site in flow.sites:
                state[site] = mitigation.rehearsed(cast(ScaledIF, flow.neuron(site)), after[site])
        flow.run(flow.body, env, T, state, free)
        return env, Simulation(env, state, before)

    def _answer(self, env: dict[fx.Node, Any], t: int, T: int) -> Any:
        """Return the output computed from the means over the first t of T steps."""
        flow = self.flow
        means = {n: env[n] for n in (flow.placeholder, *flow.head)}
        means |= {n: unfold(env[n], T)[:t].mean(0) for n in flow.emitting}
        flow.run(flow.tail, means)
        return fx.map_arg(flow.output.args[0], means.__getitem__)

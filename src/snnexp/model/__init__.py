"""Networks as plain torch modules over time-folded tensors: each takes a neuron factory, so the same class is the ANN
and the SNN."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from snnexp.errors import choice


def readout_site(readout: str, neuron: Callable[[], nn.Module]) -> nn.Module:
    """What follows the last linear layer.

    `spikes`: one more layer of `neuron`; `potential`: a non-firing integrator with that neuron's decay, emitting its
    membrane potential; `current`: nothing. Raises InvalidValue for another word.
    """
    from snnexp.neuron.integrator import Integrator

    choice("readout", readout, ("spikes", "potential", "current"))
    if readout == "spikes":
        return neuron()
    return Integrator(alpha=getattr(neuron(), "alpha", 1.0)) if readout == "potential" else nn.Identity()

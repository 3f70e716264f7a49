"""Networks as plain torch modules over time-folded tensors: each takes a neuron factory, so the same class is the ANN
and the SNN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from snnexp.errors import choice, require


def readout_site(readout: str, neuron: Callable[[], nn.Module]) -> nn.Module:
    """What follows the last linear layer.

    `spikes`: one more layer of `neuron`; `potential`: a non-firing integrator with that neuron's decay, emitting its
    membrane potential; `current`: nothing. Raises InvalidValue for another word, and for `potential` with a neuron that
    has no decay.
    """
    from snnexp.neuron.integrator import Integrator  # SpikingJelly's import, only where it is needed

    choice("readout", readout, ("spikes", "potential", "current"))
    if readout == "current":
        return nn.Identity()
    site = neuron()
    if readout == "spikes":
        return site
    decay = getattr(site, "decay", None)
    require(decay is not None, "readout", readout, "spikes or current with this neuron, whose decay is not known")
    return Integrator(alpha=float(torch.as_tensor(decay).detach()))

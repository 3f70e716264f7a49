"""The lab's network: two linear layers, each followed by spiking neurons."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import nn

from snnexp.errors import integer
from snnexp.model import readout_site


class TwoLayer(nn.Sequential):
    """Flatten, Linear(inputs, hidden), neuron, Linear(hidden, classes), readout; [T*N, *shape] -> [T*N, classes].

    Args:
        shape: one step's input shape, e.g. (2, 34, 34) for N-MNIST: inputs = 2312.
        classes: number of outputs.
        neuron: makes a fresh neuron per call (a spiking site, or an activation: then this is an ANN).
        hidden: neurons in the first layer.
        readout: what the output layer emits, see `readout_site`.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, neuron: Callable[[], nn.Module], *, hidden: int, readout: str
    ) -> None:
        hidden = integer("hidden", hidden, at_least=1)
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(prod(shape), hidden)
        self.neuron1 = neuron()
        self.linear2 = nn.Linear(hidden, classes)
        self.readout = readout_site(readout, neuron)

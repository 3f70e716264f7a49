"""The two-layer network of the computer lab."""

from math import prod

from torch import nn

from snnexp.errors import integer
from snnexp.model import Neuron, Shape, readout_site


class TwoLayer(nn.Sequential):
    """Flatten, Linear(inputs, hidden), neuron, Linear(hidden, classes), readout; [T*N, *shape] -> [T*N, classes].

    `shape`: of one step's input, e.g. (2, 34, 34) for N-MNIST: inputs = 2312. `hidden`: neurons of the first layer.
    `readout`: see `readout_site`. Raises InvalidValue.
    """

    def __init__(self, shape: Shape, classes: int, neuron: Neuron, *, hidden: int, readout: str) -> None:
        hidden = integer("hidden", hidden, at_least=1)
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(prod(shape), hidden)
        self.neuron1 = neuron()
        self.linear2 = nn.Linear(hidden, classes)
        self.readout = readout_site(readout, neuron)

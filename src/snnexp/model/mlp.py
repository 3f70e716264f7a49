"""Multi-layer perceptron."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from snnexp.errors import integers
from snnexp.model import Neuron, Shape, readout_site


class MLP(nn.Sequential):
    """Flatten, (Linear, neuron) for each of `hidden`, Linear, readout; [T*N, *shape] -> [T*N, classes].

    `hidden`: neurons of each hidden layer, each >= 1. `readout`: see `readout_site`. Raises InvalidValue.
    """

    def __init__(self, shape: Shape, classes: int, neuron: Neuron, *, hidden: Sequence[int], readout: str) -> None:
        sizes = [prod(shape), *integers("hidden", hidden, at_least=1)]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), neuron()]
        super().__init__(*layers, nn.Linear(sizes[-1], classes), readout_site(readout, neuron))

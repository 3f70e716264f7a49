"""Networks as plain torch modules over time-folded tensors; with its neuron factory, each class is an ANN or an SNN."""

from collections.abc import Callable

import torch
from torch import nn

from snnexp.errors import choice, require
from snnexp.neuron.integrator import Integrator

Shape = tuple[int, ...]  # of one step's input without the batch axis: (channels, height, width) for images
Neuron = Callable[[], nn.Module]  # returns a new neuron, or activation, at each call


def readout_site(readout: str, neuron: Neuron) -> nn.Module:
    """Return the module after the last linear layer.

    `spikes`: one more layer of `neuron`; `potential`: a non-firing integrator with that neuron's decay, which emits its
    membrane potential; `current`: an identity. Raises InvalidValue for another word, and for `potential` with a neuron
    that has no decay.
    """
    choice("readout", readout, ("spikes", "potential", "current"))
    if readout == "current":
        return nn.Identity()
    site = neuron()
    if readout == "spikes":
        return site
    decay = getattr(site, "decay", None)
    require(decay is not None, "readout", readout, "spikes or current with this neuron, which has no decay")
    return Integrator(alpha=float(torch.as_tensor(decay).detach()))


def pool2(pooling: str) -> nn.Module:
    """Return `average` or `max` pooling that halves height and width; raise InvalidValue for another word. Conversion
    works best with averages: the maximum of spike trains is not the train of the maximum."""
    return nn.AvgPool2d(2) if choice("pooling", pooling, ("average", "max")) == "average" else nn.MaxPool2d(2)


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution with this `stride` and padding 1; it has no bias, because BatchNorm follows."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv_unit(inputs: int, outputs: int, neuron: Neuron) -> list[nn.Module]:
    """Return convolution, BatchNorm and neuron."""
    return [conv3(inputs, outputs), nn.BatchNorm2d(outputs), neuron()]


def he_init(network: nn.Module) -> None:
    """Draw the weights of all convolutions as He et al. (ICCV 2015) derive for rectifiers: fan-out, normal."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def at_least(shape: Shape, side: int, model: str) -> None:
    """Raise InvalidValue unless `shape` is that of images [C, H, W] with sides of at least `side` pixels."""
    allowed = f"(channels, height, width) of at least {side} x {side} pixels for {model}"
    require(len(shape) == 3 and min(shape[1:]) >= side, "shape", tuple(shape), allowed)

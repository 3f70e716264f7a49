"""Networks as plain torch modules over time-folded tensors: each takes a neuron factory, so the same class is the ANN
and the SNN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from snnexp.errors import choice, require

Neuron = Callable[[], nn.Module]  # makes a fresh neuron, or activation, per call


def readout_site(readout: str, neuron: Neuron) -> nn.Module:
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


def pool2(pooling: str) -> nn.Module:
    """Halves height and width, by `average` or `max`; InvalidValue for another word. Conversion wants averages: the
    maximum of spike trains is not the train of the maximum."""
    return nn.AvgPool2d(2) if choice("pooling", pooling, ("average", "max")) == "average" else nn.MaxPool2d(2)


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3 x 3 convolution that keeps height and width (stride 1) or halves them; no bias: BatchNorm follows."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv_unit(inputs: int, outputs: int, neuron: Neuron) -> list[nn.Module]:
    """Convolution, BatchNorm, neuron."""
    return [conv3(inputs, outputs), nn.BatchNorm2d(outputs), neuron()]


def he_init(network: nn.Module) -> None:
    """Weights of all convolutions drawn as He et al. (ICCV 2015) derive for rectifiers: fan-out, normal."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def at_least(shape: tuple[int, ...], side: int, model: str) -> None:
    """Raise InvalidValue unless `shape` is that of images [C, H, W] with sides of at least `side` pixels."""
    require(
        len(shape) == 3 and min(shape[1:]) >= side,
        "shape",
        tuple(shape),
        f"(channels, height, width) of at least {side} x {side} pixels for {model}",
    )

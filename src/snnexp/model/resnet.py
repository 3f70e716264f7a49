"""Residual networks for small images. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, sec. 4.2.

`cifar_resnet` is that section's network (three stages, depth 6n + 2); `resnet18` is the four-stage network with a
3 x 3 first convolution that Bu et al. (QCFS, ICLR 2022) and Li et al. (Dspike, NeurIPS 2021) use for CIFAR.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from snnexp.errors import choice, integer, require
from snnexp.model import Neuron, Shape, at_least, conv3, he_init, readout_site


def cifar_resnet(
    shape: Shape, classes: int, neuron: Neuron, *, depth: int, width: int, shortcut: str, readout: str
) -> ResNet:
    """Return a `ResNet` with `depth` = 6n + 2 weighted layers (8, 14, 20, 32, 44, 50, 56, 110, ...) in stages of
    `width` (16 in the paper), 2 `width`, 4 `width` channels. Other arguments: `ResNet`. Raises InvalidValue."""
    fits = isinstance(depth, int) and 8 <= depth <= 10_000 and depth % 6 == 2
    require(fits, "depth", depth, "6n + 2: 8, 14, 20, 26, 32, 38, 44, 50, 56, 110, ... up to 10,000")
    blocks, widths = 3 * [(depth - 2) // 6], [integer("width", width, at_least=1) * 2**k for k in range(3)]
    return ResNet(shape, classes, neuron, blocks=blocks, widths=widths, shortcut=shortcut, readout=readout)


def resnet18(shape: Shape, classes: int, neuron: Neuron, *, width: int, shortcut: str, readout: str) -> ResNet:
    """Return a `ResNet` with four stages of two blocks, of 1, 2, 4 and 8 times `width` channels (64 in the papers)."""
    widths = [integer("width", width, at_least=1) * 2**k for k in range(4)]
    return ResNet(shape, classes, neuron, blocks=[2, 2, 2, 2], widths=widths, shortcut=shortcut, readout=readout)


class ResNet(nn.Module):
    """Convolution, stages of basic blocks (all but the first halve the image), global average pooling, Linear.

    [T*N, C, H, W] -> [T*N, classes], H and W >= 8. `shortcut`, where the number of channels grows: `A` pads with zeros
    (no weights), `B` is a 1 x 1 convolution with BatchNorm. `readout`: see `readout_site`. Raises InvalidValue.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        neuron: Neuron,
        *,
        blocks: Sequence[int],
        widths: Sequence[int],
        shortcut: str,
        readout: str,
    ) -> None:
        super().__init__()
        choice("shortcut", shortcut, ("A", "B"))
        at_least(shape, 8, "a residual network")
        channels = widths[0]
        self.conv, self.norm, self.neuron = conv3(shape[0], channels), nn.BatchNorm2d(channels), neuron()
        stages = []
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            for k in range(count):
                stride = 2 if stage > 0 and k == 0 else 1
                stages.append(Block(channels, width, stride, shortcut, neuron))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.pool, self.flatten, self.linear = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
        self.readout = readout_site(readout, neuron)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron(self.norm(self.conv(x)))
        x = self.flatten(self.pool(self.blocks(x)))
        return self.readout(self.linear(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Basic block: neuron(norm(conv(neuron(norm(conv(x))))) + shortcut(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str, neuron: Neuron) -> None:
        super().__init__()
        self.conv1, self.norm1, self.neuron1 = conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs), neuron()
        self.conv2, self.norm2, self.neuron2 = conv3(outputs, outputs), nn.BatchNorm2d(outputs), neuron()
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs and shortcut == "A":
            self.shortcut = PadShortcut(outputs - inputs, stride)
        elif inputs != outputs:
            point = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(point, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.neuron1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.neuron2(y + self.shortcut(x))  # type: ignore[no-any-return]


class PadShortcut(nn.Module):
    """Shortcut A: every `stride`-th pixel, and `extra` channels of zeros, half before and half after the others."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))

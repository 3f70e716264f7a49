"""A small convolutional network for small images, such as the embedded 8 x 8 digits."""

from torch import nn

from snnexp.errors import integer
from snnexp.model import Neuron, Shape, at_least, conv_unit, pool2, readout_site


class ConvNet(nn.Sequential):
    """Two convolutions, pooling, two convolutions, pooling, Linear; [T*N, C, H, W] -> [T*N, classes], H and W >= 4.

    `width`: channels of the first two convolutions; the other two have twice as many. `pooling`, `readout`: see
    `snnexp.model`. Raises InvalidValue.
    """

    def __init__(self, shape: Shape, classes: int, neuron: Neuron, *, width: int, pooling: str, readout: str) -> None:
        width = integer("width", width, at_least=1)
        at_least(shape, 4, "convnet")
        channels, height, columns = shape
        super().__init__(
            *conv_unit(channels, width, neuron),
            *conv_unit(width, width, neuron),
            pool2(pooling),
            *conv_unit(width, 2 * width, neuron),
            *conv_unit(2 * width, 2 * width, neuron),
            pool2(pooling),
            nn.Flatten(),
            nn.Linear(2 * width * (height // 4) * (columns // 4), classes),
            readout_site(readout, neuron),
        )

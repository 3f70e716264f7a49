"""CIFARNet of Wu et al., "Direct Training for Spiking Neural Networks: Faster, Larger, Better", AAAI 2019:
128C3-256C3-AP2-512C3-AP2-1024C3-512C3-1024FC-512FC-output; Deng and Gu (ICLR 2021) convert it."""

from torch import nn

from snnexp.errors import integer
from snnexp.model import Neuron, Shape, at_least, conv_unit, pool2, readout_site
from snnexp.timefold import Dropout


class CIFARNet(nn.Sequential):
    """[T*N, C, H, W] -> [T*N, classes], H and W >= 4; BatchNorm after each convolution.

    `width`: channels of the first convolution (128 in the paper), the others in proportion. `dropout`: before each
    fully connected layer, in [0, 1). `pooling`, `readout`: see `snnexp.model`. Raises InvalidValue.
    """

    def __init__(
        self, shape: Shape, classes: int, neuron: Neuron, *, width: int, dropout: float, pooling: str, readout: str
    ) -> None:
        w = integer("width", width, at_least=1)
        at_least(shape, 4, "cifarnet")
        channels, height, columns = shape
        super().__init__(
            *conv_unit(channels, w, neuron),
            *conv_unit(w, 2 * w, neuron),
            pool2(pooling),
            *conv_unit(2 * w, 4 * w, neuron),
            pool2(pooling),
            *conv_unit(4 * w, 8 * w, neuron),
            *conv_unit(8 * w, 4 * w, neuron),
            nn.Flatten(),
            Dropout(dropout),
            nn.Linear(4 * w * (height // 4) * (columns // 4), 8 * w),
            neuron(),
            Dropout(dropout),
            nn.Linear(8 * w, 4 * w),
            neuron(),
            nn.Linear(4 * w, classes),
            readout_site(readout, neuron),
        )

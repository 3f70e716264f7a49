"""Wide residual networks. Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016: WRN-depth-widen, B(3, 3)."""

from torch import Tensor, nn

from snnexp.errors import integer, require
from snnexp.model import Neuron, Shape, at_least, conv3, he_init, readout_site
from snnexp.timefold import Dropout


class WideResNet(nn.Module):
    """Convolution to 16 channels, three stages of (depth - 4)/6 blocks, BatchNorm, neuron, global average, Linear.

    [T*N, C, H, W] -> [T*N, classes], H and W >= 8. `depth` = 6n + 4 (10, 16, 22, 28, 40, ...); stages have 16, 32 and
    64 times `widen` channels; `dropout`: between the convolutions of a block, in [0, 1). `readout`: see `readout_site`.
    Raises InvalidValue.
    """

    def __init__(
        self, shape: Shape, classes: int, neuron: Neuron, *, depth: int, widen: int, dropout: float, readout: str
    ) -> None:
        super().__init__()
        fits = isinstance(depth, int) and 10 <= depth <= 10_000 and depth % 6 == 4
        require(fits, "depth", depth, "6n + 4: 10, 16, 22, 28, 34, 40, ... up to 10,000")
        at_least(shape, 8, "wideresnet")
        channels, blocks = 16, []
        self.conv = conv3(shape[0], channels)
        for stage in range(3):
            width = 16 * 2**stage * integer("widen", widen, at_least=1)
            for k in range((depth - 4) // 6):
                blocks.append(Block(channels, width, 2 if stage and k == 0 else 1, dropout, neuron))
                channels = width
        self.blocks, self.norm, self.neuron = nn.Sequential(*blocks), nn.BatchNorm2d(channels), neuron()
        self.pool, self.flatten, self.linear = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
        self.readout = readout_site(readout, neuron)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron(self.norm(self.blocks(self.conv(x))))
        return self.readout(self.linear(self.flatten(self.pool(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-activation block: x + conv(dropout(neuron(norm(conv(neuron(norm(x))))))).

    Where the shape changes, the shortcut is a 1 x 1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, neuron: Neuron) -> None:
        super().__init__()
        self.norm1, self.neuron1, self.conv1 = nn.BatchNorm2d(inputs), neuron(), conv3(inputs, outputs, stride)
        self.norm2, self.neuron2, self.conv2 = nn.BatchNorm2d(outputs), neuron(), conv3(outputs, outputs)
        self.dropout = Dropout(dropout)
        self.shortcut = None if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.neuron1(self.norm1(x))
        y = self.conv1(active)
        y = self.conv2(self.dropout(self.neuron2(self.norm2(y))))
        return y + (x if self.shortcut is None else self.shortcut(active))  # type: ignore[no-any-return]

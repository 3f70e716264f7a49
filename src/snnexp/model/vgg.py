"""VGG-16 for 32 x 32 images. Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", ICLR 2015 (configuration D), with BatchNorm; as Bu et al. (ICLR 2022) train it for conversion."""

from collections.abc import Sequence

from torch import nn

from snnexp.errors import integer, integers
from snnexp.model import Neuron, Shape, at_least, conv_unit, he_init, pool2, readout_site
from snnexp.timefold import Dropout

STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # channels in units of `width`; pooling after each stage


class VGG16(nn.Sequential):
    """13 convolutions in five stages, global average pooling, fully connected layers; [T*N, C, H, W] -> [T*N, classes].

    H and W >= 32. `width`: channels of the first stage (64 in the paper). `hidden`: neurons of the fully connected
    layers before the last, e.g. [4096, 4096], or []; `dropout`: after each of them, in [0, 1). `pooling`, `readout`:
    see `snnexp.model`. Raises InvalidValue.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        neuron: Neuron,
        *,
        width: int,
        hidden: Sequence[int],
        dropout: float,
        pooling: str,
        readout: str,
    ) -> None:
        width = integer("width", width, at_least=1)
        at_least(shape, 32, "vgg16")
        layers, channels = list[nn.Module](), shape[0]
        for stage in STAGES:
            for units in stage:
                layers += conv_unit(channels, units * width, neuron)
                channels = units * width
            layers.append(pool2(pooling))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for size in integers("hidden", hidden, at_least=1):
            layers += [nn.Linear(channels, size), neuron(), Dropout(dropout)]
            channels = size
        super().__init__(*layers, nn.Linear(channels, classes), readout_site(readout, neuron))
        he_init(self)

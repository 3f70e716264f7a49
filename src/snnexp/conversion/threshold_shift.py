"""Threshold shift, `conversion=threshold_shift`: threshold balancing, plus half a threshold of input over T steps.

Deng and Gu, "Optimal Conversion of Conventional Artificial Neural Networks to Spiking Neural Networks", ICLR 2021: a
spiking neuron rounds down, so its mean output is theta/(2T) too low for uniformly distributed inputs. Adding theta/(2T)
to the input of each step removes this error. So does v(0) = theta/2, which gives the same count after T steps of
constant input and serves every T at once. It is made for sources with a clipped activation (`neuron=clip`), whose bound
is theta.
"""

from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.thresholds import Placing, bound, largest
from snnexp.conversion.walk import Layer
from snnexp.errors import choice, number
from snnexp.neuron.clip import Bounded


class ThresholdShift(Placing):
    """theta is the bound of a clipped source, else the `percentile` of its activations, of the layer or `per_channel`.

    `form`: `potential` starts at theta/2; `bias` adds theta/(2T) to the input of each step and starts at 0. Raises
    InvalidValue.
    """

    def __init__(
        self, form: str = "potential", percentile: float = 100.0, per_channel: bool = False, maxpool: str | None = None
    ) -> None:
        super().__init__(per_channel, 0.0, maxpool)
        self.form = choice("form", form, ("potential", "bias"))
        self.percentile = number("percentile", percentile, "a percentage above 0 and at most 100", above=0, at_most=100)

    @property
    def per_T(self) -> bool:
        return self.form == "bias"

    def place(self, layer: Layer) -> ScaledIF:
        if isinstance(layer.activation, Bounded) and self.percentile == 100:
            theta = bound(layer, layer.activation)
        else:
            theta = largest(layer, self.percentile, self.per_channel)
        if self.form == "bias":
            return ScaledIF(theta, bias=theta / (2 * layer.T))
        return ScaledIF(theta, v_init=theta / 2)

"""QCFS conversion, `conversion=qcfs`: a network trained with quantised activations, with its learnt thresholds.

Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking Neural Networks", ICLR 2022:
theta = lam, v(0) = theta/2. With T = L and evenly arriving inputs the network equals the ANN; T need not equal L.
"""

from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.thresholds import Placing, bound
from snnexp.conversion.walk import Layer
from snnexp.errors import UserError
from snnexp.neuron.clip import Bounded


class QCFSConversion(Placing):
    """theta is the learnt bound of the activation. Raises UserError at a site whose activation has no bound (ReLU)."""

    def __init__(self, maxpool: str | None = None) -> None:
        super().__init__(False, 0.5, maxpool)

    def place(self, layer: Layer) -> ScaledIF:
        if not isinstance(layer.activation, Bounded):
            lack = f"layer {layer.name} has a {type(layer.activation).__name__} without one"
            raise UserError(
                f"conversion=qcfs takes its thresholds from the network's activations, and {lack}: train it with "
                "neuron=qcfs or clip, or choose another conversion"
            )
        theta = bound(layer, layer.activation)
        return ScaledIF(theta, theta / 2)

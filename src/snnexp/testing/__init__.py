"""Contract tests for your own parts, to be inherited by a test file of yours (with pytest).

    from snnexp.testing import SurrogateContract

    class TestGaussian(SurrogateContract):
        def make(self):
            return Gaussian(sigma=0.4)

Each class defines `make`, which returns a fresh part, and may override the class attributes that its contract lists.
snnexp's own tests inherit the same classes.
"""

from snnexp.testing.conversions import ConversionContract, CorrectionContract, MitigationContract
from snnexp.testing.parts import DatasetContract, ModelContract, NeuronContract, SurrogateContract
from snnexp.testing.tasks import TaskContract

__all__ = [
    "ConversionContract",
    "CorrectionContract",
    "DatasetContract",
    "MitigationContract",
    "ModelContract",
    "NeuronContract",
    "SurrogateContract",
    "TaskContract",
]

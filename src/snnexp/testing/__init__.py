"""Contract tests for your own parts. A test file of yours inherits them and runs them with pytest.

    from snnexp.testing import SurrogateContract

    class TestGaussian(SurrogateContract):
        def make(self):
            return Gaussian(sigma=0.4)

Each class needs `make`, which returns a new part (`TaskContract` needs `command`), and lists the class attributes that
you may override. snnexp's own tests inherit the same classes. docs/extending.md has an example of each.
"""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in ("conversions", "parts", "tasks")))

from snnexp.testing.conversions import ConversionContract, CorrectionContract, MitigationContract  # noqa: E402
from snnexp.testing.parts import DatasetContract, ModelContract, NeuronContract, SurrogateContract  # noqa: E402
from snnexp.testing.tasks import TaskContract  # noqa: E402

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

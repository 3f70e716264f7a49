"""`Calibration`, which `calibration=` builds: the corrections to apply and the images to apply them on."""

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from snnexp.build import unlike
from snnexp.conversion.walk import Correction, Keep
from snnexp.dataset.base import Split
from snnexp.errors import InvalidValue, choice, integer, require


class Calibration:
    """The corrections that `steps` names, out of `available`; they are applied in this order at every layer.

    `keep`: `better`, a channel keeps a correction if it lowers the correction's objective; or `always`. `images` is the
    number of calibration images, drawn from the training split by `seed`; conversion methods use them as well. Raises
    InvalidValue.
    """

    def __init__(
        self, steps: Sequence[str], images: int, seed: int, available: Mapping[str, Correction], keep: Keep = "better"
    ) -> None:
        require(not isinstance(steps, str), "steps", steps, f"a list such as [{steps}]")
        for name, correction in available.items():
            if lacks := unlike(correction, Correction):
                raise InvalidValue(f"available.{name}", type(correction).__name__, f"a correction, and it {lacks}")
        for step in steps:
            require(step in available, "steps", list(steps), f"a list of {', '.join(available)}")
        self.steps, self.images, self.seed = list(steps), integer("images", images, at_least=1), seed
        self.keep: Keep = choice("keep", keep, get_args(Keep))  # type: ignore[assignment]
        self.corrections = [available[step] for step in steps]

    def sample(self, split: Split) -> Tensor:
        """Return the calibration images, [images, ...]. Raises InvalidValue if the split has fewer."""
        if self.images > len(split):
            raise InvalidValue("images", self.images, f"at most {len(split)}, the images of the training split")
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.seed))[: self.images]
        return next(split.batches(self.images, order))[0]

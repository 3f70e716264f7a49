"""Early exit: stop the simulation of an image as soon as the running answer is confident.

At step t the answer is y(t), the mean output over t steps. The image exits at the first t where the largest entry of
softmax(y(t)) is above the confidence, and at T at the latest. See Li et al., "SEENN: Towards Temporal Spiking
Early-Exit Neural Networks", NeurIPS 2023 (SEENN-I).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnexp.conversion.frames import PerFrame
from snnexp.conversion.measure import spread
from snnexp.conversion.network import Converted
from snnexp.dataset.base import Split


class Exit(NamedTuple):
    """The accuracy, and the mean number of steps of an image, with one confidence."""

    confidence: float
    steps: float
    accuracy: float


def exits(outputs: Sequence[Tensor], confidence: float) -> tuple[Tensor, Tensor]:
    """Return (t [N], classes [N]): the step at which each image exits, from 1 to T, and its class there.

    `outputs`: the mean outputs [N, K] after 1..T steps.
    """
    y = torch.stack(list(outputs))
    sure = y.softmax(-1).amax(-1) > confidence  # [T, N]
    sure[-1] = True
    t = sure.int().argmax(0)  # the first
    return t + 1, y.argmax(-1).gather(0, t[None])[0]


def measure_exits(
    snn: Converted | PerFrame,
    split: Split,
    T: int,
    confidences: Sequence[float],
    batch_size: int,
    device: torch.device,
    images: int | None = None,
) -> list[Exit]:
    """Return one row for each of `confidences`, from one simulation, on `images` samples spread over the split."""
    steps, right = dict.fromkeys(confidences, 0), dict.fromkeys(confidences, 0)
    order = spread(split, images)
    for x, y in split.batches(batch_size, order):
        outputs = [answer.cpu() for answer in snn.at(x.to(device), range(1, T + 1))]
        for confidence in confidences:
            t, found = exits(outputs, confidence)
            steps[confidence] += int(t.sum())
            right[confidence] += int((found == y).sum())
    return [Exit(c, steps[c] / len(order), right[c] / len(order)) for c in confidences]

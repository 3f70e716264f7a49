"""A simulated DVS128 before a screen on which an image moves, as in the recording of CIFAR10-DVS.

H. Li et al., "CIFAR10-DVS: An Event-Stream Dataset for Object Classification", Frontiers in Neuroscience 2017: images
of 32 x 32 are enlarged to 512 x 512 by bicubic interpolation and make a repeated closed-loop smooth movement on a
screen, before a fixed sensor of 128 x 128 pixels (Lichtsteiner et al. 2008).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from snnexp.dataset.aedat import SIDE
from snnexp.dataset.camera import LEVELS, EventCamera, shares
from snnexp.errors import integer, number, require

VERSION = 1  # increase when the same settings give other events, so that recordings are prepared again
GAMMA = 2.2  # a screen's light is the pixel value to this power


@dataclass(frozen=True)
class DVS128(EventCamera):
    """`EventCamera`, and the movement of the image, which fills the sensor at rest (an image pixel is four sensor
    pixels wide) and goes round a rhombus at constant speed. Each of its four sides is `travel` sensor pixels long both
    across and along; a round takes `period` us, and there are `loops` rounds. The screen around the image is black.

    Distance, speed and number of rounds are our settings, not constants of the paper's set-up; with the defaults a
    recording lasts 1.2 s. The pixel's constants were not fitted to real recordings either.
    """

    side = SIDE
    image = 32
    step = 2000
    parts = 40_000  # bicubic weights may be negative: their absolute values x 255 must stay below 2^24

    blur: float = 1.0
    dark: float = 0.2
    receptor: float = 2000.0
    on: float = 0.35
    off: float = 0.35
    mismatch: float = 0.05
    refractory: float = 2000.0
    noise: float = 0.1
    noise_on: float = 0.5
    travel: float = 6.0
    period: int = 200_000
    loops: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        number("travel", self.travel, f"sensor pixels above 0 and below {SIDE}", above=0, below=SIDE)
        integer("loops", self.loops, at_least=1)
        whole = isinstance(self.period, int) and self.period > 0 and self.period % (4 * self.step) == 0
        require(whole, "period", self.period, f"us, a multiple of {4 * self.step}")

    @property
    def steps(self) -> int:
        return self.loops * self.period // self.step

    def centre(self) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return (right, down): the image's centre at each step, in sensor pixels from the sensor's centre."""
        phase = np.arange(self.steps + 1) * self.step % self.period / self.period
        d, corners = self.travel, np.linspace(0, 1, 5)
        return np.interp(phase, corners, [-d, 0, d, 0, -d]), np.interp(phase, corners, [0, -d, 0, d, 0])

    def _weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        eye = torch.eye(self.image, dtype=torch.float64)[None, None]
        enlarged = torch.nn.functional.interpolate(eye, size=(SIDE, self.image), mode="bicubic")[0, 0]
        edges = np.arange(SIDE + 1) - SIDE / 2
        right, down = self.centre()
        return shares(edges, down, SIDE, self.blur) @ enlarged, shares(edges, right, SIDE, self.blur) @ enlarged

    def _log_light(self) -> NDArray[np.float64]:
        return np.log(self.dark + (np.arange(LEVELS + 1) / LEVELS) ** GAMMA)

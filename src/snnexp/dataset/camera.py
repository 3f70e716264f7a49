"""A simulated ATIS event camera that looks at an image on a screen and makes the three saccades of N-MNIST.

Pixel model, in continuous time (Lichtsteiner et al. 2008; Posch et al. 2011; Orchard et al. 2015 for the set-up):
the image moves over the sensor along `PATH` and is blurred by the optics; a photoreceptor follows the logarithm of the
light with a time constant; when it has moved by the pixel's own ON or OFF threshold from a stored level, the pixel
emits an event at the moment of crossing, is dead for its refractory time, and stores the level at the end of that.
Background events come on top. The numbers were fitted to pairs (MNIST image, its real recording): docs/datasets.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from snnexp.dataset.events import HEIGHT, WIDTH, Events
from snnexp.errors import number, require

VERSION = 1  # raise it when the same settings give other events: prepared recordings are then made anew
IMAGE = 28  # rows and columns of an image, as in MNIST
STEP = 1000  # us; between two steps the photoreceptor's level is taken as linear
STEPS = 316  # a recording lasts so many steps
LEVELS = 4000  # of light between a screen's black and white
ROWS = 60_000  # parts of one in the weights of image rows
WHITE = 255 * ROWS / LEVELS
Array = NDArray[np.float32]

# Where the image's centre is: time in ms, then right and down from the sensor's centre in sensor pixels.
PATH = (
    (0, -2.6, -2.0), (10, -2.65, -1.8), (20, -2.75, -1.1), (30, -2.8, -0.2), (40, -2.6, 0.9), (50, -2.2, 1.9),
    (60, -1.7, 2.9), (70, -1.1, 3.3), (80, -1.0, 3.4), (90, -1.1, 3.4), (100, -1.0, 3.5), (110, -0.85, 3.5),
    (120, -0.4, 3.3), (130, 0.2, 2.8), (140, 0.8, 2.0), (150, 1.2, 0.9), (160, 1.7, -0.2), (170, 2.0, -1.0),
    (180, 2.2, -1.5), (190, 2.4, -1.7), (200, 2.7, -1.9), (210, 2.8, -1.8), (220, 2.8, -1.8), (230, 2.6, -1.8),
    (240, 1.7, -1.7), (250, 0.7, -1.6), (260, -0.3, -1.6), (270, -1.2, -1.7), (280, -1.8, -1.7), (290, -2.1, -1.8),
    (300, -2.15, -1.85), (316, -2.15, -1.85))


@dataclass(frozen=True)
class Camera:
    """The camera's constants. Raises InvalidValue for one out of range.

    scale: sensor pixels an image pixel. blur: standard deviation of the optics, sensor pixels. dark: light of a black
    screen as a share of a white one. receptor: time constant of the photoreceptor, us. on, off: thresholds, in units
    of the natural logarithm. mismatch: spread of the thresholds and refractory times from pixel to pixel, relative.
    refractory: us, at least one step. noise: background events a second and pixel, and noise_spread the spread of
    its logarithm from pixel to pixel (a few pixels are "hot"); noise_on: share of ON among them.
    seed: the sensor's fixed pattern and all chance.
    """

    scale: float = 1.0
    blur: float = 0.7
    dark: float = 0.3
    receptor: float = 2000.0
    on: float = 0.17
    off: float = 0.17
    mismatch: float = 0.1
    refractory: float = 2000.0
    noise: float = 0.25
    noise_spread: float = 1.0
    noise_on: float = 0.65
    path: tuple[tuple[float, ...], ...] = PATH
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name not in ("path", "seed"):
                number(field.name, getattr(self, field.name), "a number >= 0", at_least=0)
        for name in ("scale", "blur", "dark", "receptor", "on", "off"):
            number(name, getattr(self, name), "a number > 0", above=0)
        number("refractory", self.refractory, f"at least {STEP} (us)", at_least=STEP)
        number("noise_on", self.noise_on, "a share between 0 and 1", at_most=1)
        sound = len(self.path) > 1 and all(len(knot) == 3 for knot in self.path)
        require(sound and all(a[0] < b[0] for a, b in pairwise(self.path)), "path", self.path,
                "at least two rows of (ms, right, down), the times rising")
        require(isinstance(self.seed, int) and self.seed >= 0, "seed", self.seed, "an integer >= 0")

    def record(self, images: NDArray[np.uint8], keys: Sequence[int]) -> list[Events]:
        """Record `images` uint8 [n, 28, 28]; `keys` [n] >= 0 name each one's chance.

        A recording is a function of the camera, its image and its key alone, whatever else is in the batch.
        """
        n = len(images)
        on, off, dead, rate = self._pattern()
        middle, reach = (on - off) / 2, (on + off) / 2  # stored - off .. stored + on is centre -+ reach
        chance = [np.random.default_rng((self.seed, 1, key)) for key in keys]
        ink = images.transpose(1, 0, 2).astype(np.float32)
        follow = np.float32(1 - np.exp(-STEP / self.receptor))

        # Arrays are [34 rows, n, 34 columns]: then either side of `_see` is one matrix product.
        level = self._see(ink, 0)
        # a pixel's stored level is anywhere between its thresholds when the recording starts
        centre = level + reach * np.stack([c.uniform(-1, 1, (HEIGHT, WIDTH)) for c in chance], 1).astype(np.float32)
        pixel = (np.arange(HEIGHT)[:, None, None] * WIDTH + np.arange(WIDTH) + np.zeros((1, n, 1), int)).ravel()
        waiting, until = np.zeros(0, int), np.zeros(0)  # pixels in their refractory time, and its end
        found = []
        for step in range(1, STEPS + 1):
            start, before, level = (step - 1) * STEP, level, self._see(ink, step)
            level -= before
            level *= follow
            level += before
            done = until <= start + STEP
            freed, share = waiting[done], (until[done] - start) / STEP
            stored = before.flat[freed] + share * (level.flat[freed] - before.flat[freed])
            centre.flat[freed] = stored + middle.flat[pixel[freed]]
            hit = np.flatnonzero(np.abs(level - centre) >= reach)
            rise = level.flat[hit] > centre.flat[hit]
            goal = centre.flat[hit] + np.where(rise, 1, -1) * reach.flat[pixel[hit]]
            crossed = (goal - before.flat[hit]) / (level.flat[hit] - before.flat[hit])
            t = start + STEP * np.clip(crossed, 0, 1)
            centre.flat[hit] = np.nan  # deaf until its refractory time ends: no comparison with NaN is true
            waiting, until = (np.concatenate(pair) for pair in ((waiting[~done], hit),
                                                                (until[~done], t + dead.flat[pixel[hit]])))
            found.append((hit // WIDTH % n, pixel[hit], t, rise))
        return self._collect(found, rate, chance)

    def _pattern(self) -> tuple[Array, Array, Array, Array]:
        """The sensor's pixels [34, 1, 34]: ON and OFF threshold, refractory time (us), background rate (1/s)."""
        spread = np.random.default_rng((self.seed, 0)).standard_normal((4, HEIGHT, 1, WIDTH), np.float32)
        vary = np.clip(1 + self.mismatch * spread[:3], 0.3, 2)
        hot = np.exp(self.noise_spread * spread[3] - self.noise_spread**2 / 2)
        return (np.float32(self.on) * vary[0], np.float32(self.off) * vary[1],
                np.maximum(np.float32(self.refractory) * vary[2], STEP), np.float32(self.noise) * hot)

    def _see(self, ink: Array, step: int) -> Array:
        """Log light on the sensor [34, n, 34] at `step`, of `ink` [28, n, 28] in 0..255: image and blur are separable.

        All factors are whole numbers and all products stay below 2^24, so float32 is exact, and a recording depends
        neither on the batch nor on how a matrix product is ordered.
        """
        n, (rows, columns, log_light) = ink.shape[1], self._optics
        half = np.rint((rows[step] @ ink.reshape(IMAGE, -1)) * np.float32(1 / WHITE))
        seen = (half.reshape(-1, IMAGE) @ columns[step]) * np.float32(1 / LEVELS)
        levels: Array = log_light[np.rint(seen, out=seen).astype(np.int32)]
        return levels.reshape(HEIGHT, n, WIDTH)

    @cached_property
    def _optics(self) -> tuple[Array, Array, Array]:
        """Share of each image row in what each sensor row sees at each step, [steps, 34, 28], and the same for columns,
        [steps, 28, 34]: a box the size of an image pixel under a Gaussian blur; and the log light of each ink level."""
        ms, right, down = np.array(self.path).T
        times = np.arange(STEPS + 1) * STEP / 1000
        edges = (np.arange(IMAGE + 1) - IMAGE / 2) * self.scale
        shares = []
        for shift, size in ((np.interp(times, ms, down), HEIGHT), (np.interp(times, ms, right), WIDTH)):
            distance = edges + shift[:, None, None] - (np.arange(size) - (size - 1) / 2)[:, None]
            reached = torch.special.ndtr(torch.from_numpy(distance / self.blur))
            shares.append(torch.diff(reached))
        rows, columns = (torch.round(share * unit).float() for share, unit in zip(shares, (ROWS, LEVELS), strict=True))
        log_light = np.log(1 + self.dark - np.minimum(np.arange(LEVELS + 100) / LEVELS, 1))
        return rows.numpy(), np.ascontiguousarray(columns.mT.numpy()), log_light.astype(np.float32)

    def _collect(self, found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]],
                 rate: Array, chance: list[np.random.Generator]) -> list[Events]:
        """Sort the events by recording and time, with each recording's background events among them."""
        owner, pixel, t, p = (np.concatenate(parts) for parts in zip(*found, strict=True))
        by = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[by], np.arange(len(chance) + 1))
        recordings = []
        for c, first, last in zip(chance, bounds, bounds[1:], strict=False):
            mine = by[first:last]
            extra = np.repeat(np.arange(HEIGHT * WIDTH), c.poisson(rate.ravel() * (STEPS * STEP / 1e6)))
            times = np.concatenate([t[mine], c.random(len(extra)) * STEPS * STEP]).astype(np.int64)
            place = np.concatenate([pixel[mine], extra])
            polarity = np.concatenate([p[mine], c.random(len(extra)) < self.noise_on]).astype(np.int64)
            order = np.argsort(times, kind="stable")
            y, x = np.divmod(place[order], WIDTH)
            recordings.append(Events(times[order], x, y, polarity[order]))
        return recordings

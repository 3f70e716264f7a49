"""Simulated event cameras that look at an image on a screen: `EventCamera` is the pixel model, `Camera` the ATIS that
makes the three saccades of N-MNIST (`dvs128.py` has the DVS128 of CIFAR10-DVS).

Pixel model, in continuous time (Lichtsteiner et al. 2008; Posch et al. 2011): the image moves over the sensor along a
path and is blurred by the optics; a photoreceptor follows the logarithm of the light with a time constant; when it has
moved by the pixel's own ON or OFF threshold from a stored level, the pixel emits an event at the moment of crossing,
stores the level it then has, and is deaf for its refractory time. Background events come on top.

The ATIS (set-up: Orchard et al. 2015) sees ink dark on a bright screen, as the polarity of the recordings tells. Its
numbers were fitted to pairs (MNIST image, its real recording): docs/datasets.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from snnexp.dataset.events import HEIGHT, Events
from snnexp.errors import number, require

VERSION = 1  # raise it when the same settings give other events: prepared recordings are then made anew
IMAGE = 28  # rows and columns of an image, as in MNIST
STEP = 1500  # us; between two steps the photoreceptor's level is taken as linear
STEPS = 211  # a recording lasts so many steps: 316.5 ms
LEVELS = 4000  # of light between a screen's black and white
Array = NDArray[np.float32]

PAUSES = (0, 90_000, 105_000, 195_000, 210_000, STEPS * STEP)  # us: start and end of each saccade
# Where the image's centre is: time in ms, then right and down from the sensor's centre in sensor pixels.
PATH = (
    (0, -2.49, -1.69),
    (10, -2.47, -1.64),
    (20, -2.60, -1.18),
    (30, -2.65, -0.42),
    (40, -2.64, 0.72),
    (50, -2.49, 2.03),
    (60, -1.88, 3.02),
    (70, -1.19, 3.53),
    (80, -0.93, 3.63),
    (90, -0.85, 3.60),
    (100, -0.82, 3.28),
    (110, -0.65, 3.26),
    (120, -0.43, 3.45),
    (130, 0.07, 3.07),
    (140, 0.87, 2.24),
    (150, 1.36, 0.96),
    (160, 1.53, -0.24),
    (170, 2.00, -1.31),
    (180, 2.33, -1.70),
    (190, 2.48, -1.75),
    (200, 2.70, -1.56),
    (210, 2.95, -1.53),
    (220, 3.00, -1.63),
    (230, 2.58, -1.77),
    (240, 1.63, -1.61),
    (250, 0.67, -1.60),
    (260, -0.47, -1.69),
    (270, -1.45, -1.76),
    (280, -2.00, -1.89),
    (290, -2.46, -1.97),
    (300, -2.55, -1.93),
    (316, -2.32, -1.96),
)


@dataclass(frozen=True)
class EventCamera:
    """The pixel model's constants. Raises InvalidValue for one out of range.

    blur: standard deviation of the optics, sensor pixels. dark: light of a black screen as a share of a white one.
    receptor: time constant of the photoreceptor, us. on, off: thresholds, in units of the natural logarithm.
    mismatch: spread of the thresholds and refractory times from pixel to pixel, relative. refractory: us, at least one
    step. noise: background events a second and pixel, and noise_spread the spread of its logarithm from pixel to pixel
    (a few pixels are "hot"); noise_on: share of ON among them. seed: the sensor's fixed pattern and all chance.

    A subclass says how large the sensor and the image are (`side`, `image`: rows, and as many columns), how long a
    `step` (us) is and how many there are (`steps`), in how many `parts` of one the weights of image rows are given, and
    defines `_weights` and `_log_light`.
    """

    side: ClassVar[int]
    image: ClassVar[int]
    step: ClassVar[int]
    parts: ClassVar[int]

    blur: float = 0.544
    dark: float = 0.208
    receptor: float = 2200.0
    on: float = 0.25
    off: float = 0.245
    mismatch: float = 0.1
    refractory: float = 1800.0
    noise: float = 0.39
    noise_spread: float = 0.6
    noise_on: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(EventCamera):
            if field.name != "seed":
                number(field.name, getattr(self, field.name), "a number >= 0", at_least=0)
        for name in ("blur", "dark", "receptor", "on", "off"):
            number(name, getattr(self, name), "a number > 0", above=0)
        number("refractory", self.refractory, f"at least {self.step} (us)", at_least=self.step)
        number("noise_on", self.noise_on, "a share between 0 and 1", at_most=1)
        require(isinstance(self.seed, int) and self.seed >= 0, "seed", self.seed, "an integer >= 0")

    @property
    def steps(self) -> int:
        """A recording lasts so many steps."""
        raise NotImplementedError

    def _weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Share of each image row in what each sensor row sees at each step, [steps + 1, side, image], and the same for
        columns."""
        raise NotImplementedError

    def _log_light(self) -> NDArray[np.float64]:
        """Log light of each of the LEVELS of the image, and of some above."""
        raise NotImplementedError

    def _moved(self, t: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
        """Times of events, us, as they are in one recording."""
        return t

    def record(self, images: NDArray[np.uint8], keys: Sequence[int]) -> list[Events]:
        """Record `images` uint8 [n, image, image]; `keys` [n] >= 0 name each one's chance.

        A recording is a function of the camera, its image and its key alone, whatever else is in the batch.
        """
        n, side, step_us = len(images), self.side, self.step
        on, off, dead, rate = self._pattern()
        middle, reach = (on - off) / 2, (on + off) / 2  # stored - off .. stored + on is centre -+ reach
        chance = [np.random.default_rng((self.seed, 1, key)) for key in keys]
        ink = images.transpose(1, 0, 2).astype(np.float32)
        follow = np.float32(1 - np.exp(-step_us / self.receptor))

        # Arrays are [side rows, n, side columns]: then either side of `_see` is one matrix product.
        level = self._see(ink, 0)
        # a pixel's stored level is anywhere between its thresholds when the recording starts
        centre = level + reach * np.stack([c.uniform(-1, 1, (side, side)) for c in chance], 1).astype(np.float32)
        pixel = (np.arange(side)[:, None, None] * side + np.arange(side) + np.zeros((1, n, 1), int)).ravel()
        free = np.zeros_like(level)  # when each pixel's refractory time ends, us
        deaf, kept = np.zeros(0, int), np.zeros(0, np.float32)  # pixels in their refractory time, and their new centre
        found = []
        for step in range(1, self.steps + 1):
            start, before, level = (step - 1) * step_us, level, self._see(ink, step)
            level -= before
            level *= follow
            level += before
            ready = free.flat[deaf] <= start + step_us
            centre.flat[deaf[ready]] = kept[ready]
            hit = np.flatnonzero(np.abs(level - centre) >= reach)
            first, slope, goal = before.flat[hit], (level - before).flat[hit] / step_us, centre.flat[hit]
            place, margin = pixel[hit], reach.flat[pixel[hit]]
            rise = level.flat[hit] > goal
            goal += np.where(rise, margin, -margin)
            # where not: it is at or beyond its threshold already, and waited for its refractory time to end
            inside = ((first < goal) == rise) & (slope != 0)
            t = start + np.divide(goal - first, slope, out=np.zeros_like(first), where=inside)
            t = np.clip(t, free.flat[hit], start + step_us)
            free.flat[hit] = t + dead.flat[place]
            centre.flat[hit] = np.nan  # no comparison with NaN is true
            deaf = np.concatenate([deaf[~ready], hit])
            kept = np.concatenate([kept[~ready], first + slope * (t - start) + middle.flat[place]])
            found.append((hit // side % n, place, t, rise))
        return self._collect(found, rate, chance)

    def _pattern(self) -> tuple[Array, Array, Array, Array]:
        """The sensor's pixels [side, 1, side]: ON and OFF threshold, refractory time (us), background rate (1/s)."""
        spread = np.random.default_rng((self.seed, 0)).standard_normal((4, self.side, 1, self.side), np.float32)
        vary = np.clip(1 + self.mismatch * spread[:3], 0.3, 2)
        hot = np.exp(self.noise_spread * spread[3] - self.noise_spread**2 / 2)
        return (
            np.float32(self.on) * vary[0],
            np.float32(self.off) * vary[1],
            np.maximum(np.float32(self.refractory) * vary[2], self.step),
            np.float32(self.noise) * hot,
        )

    def _see(self, ink: Array, step: int) -> Array:
        """Log light on the sensor [side, n, side] at `step`, of `ink` [image, n, image] in 0..255: image and blur are
        separable.

        All factors are whole numbers and all products stay below 2^24, so float32 is exact, and a recording depends
        neither on the batch nor on how a matrix product is ordered.
        """
        n, (rows, columns, log_light) = ink.shape[1], self._optics
        half = rows[step] @ ink.reshape(self.image, -1)
        half *= np.float32(LEVELS / (255 * self.parts))
        seen = np.rint(half, out=half).reshape(-1, self.image) @ columns[step]
        seen *= np.float32(1 / LEVELS)
        seen += np.float32(0.5)
        levels: Array = log_light.take(seen.astype(np.intp), mode="clip")
        return levels.reshape(self.side, n, self.side)

    @cached_property
    def _optics(self) -> tuple[Array, Array, Array]:
        """`_weights` in whole parts, of the columns as [steps + 1, image, side], and `_log_light`."""
        both = zip(self._weights(), (self.parts, LEVELS), strict=True)
        rows, columns = (torch.round(share * unit).float() for share, unit in both)
        return rows.numpy(), np.ascontiguousarray(columns.mT.numpy()), self._log_light().astype(np.float32)

    def _collect(
        self,
        found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]],
        rate: Array,
        chance: list[np.random.Generator],
    ) -> list[Events]:
        """Sort the events by recording and time, with each recording's background events among them."""
        owner, pixel, t, p = (np.concatenate(parts) for parts in zip(*found, strict=True))
        by = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[by], np.arange(len(chance) + 1))
        recordings, duration = [], self.steps * self.step
        for c, first, last in zip(chance, bounds, bounds[1:], strict=False):
            mine = by[first:last]
            extra = np.repeat(np.arange(self.side**2), c.poisson(rate.ravel() * (duration / 1e6)))
            moved = self._moved(t[mine], c)
            times = np.concatenate([moved, c.random(len(extra)) * duration]).astype(np.int64)
            place = np.concatenate([pixel[mine], extra])
            polarity = np.concatenate([p[mine], c.random(len(extra)) < self.noise_on]).astype(np.int64)
            order = np.argsort(times, kind="stable")
            y, x = np.divmod(place[order], self.side)
            recordings.append(Events(times[order], x, y, polarity[order]))
        return recordings


@dataclass(frozen=True)
class Camera(EventCamera):
    """The ATIS. `EventCamera`, and scale: sensor pixels an image pixel; jitter: standard deviation of the time at which
    the second and the third saccade start, us; path: rows of (ms, right, down), see `PATH`."""

    side = HEIGHT
    image = IMAGE
    step = STEP
    steps = STEPS
    parts = 60_000

    scale: float = 1.01
    jitter: float = 2500.0
    path: tuple[tuple[float, ...], ...] = PATH

    def __post_init__(self) -> None:
        super().__post_init__()
        number("scale", self.scale, "a number > 0", above=0)
        number("jitter", self.jitter, "0 to 5000 (us), so that saccades do not overlap", at_least=0, at_most=5000)
        sound = len(self.path) > 1 and all(len(knot) == 3 for knot in self.path)
        require(
            sound and all(a[0] < b[0] for a, b in pairwise(self.path)),
            "path",
            self.path,
            "at least two rows of (ms, right, down), the times rising",
        )

    def _weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        ms, right, down = np.array(self.path).T
        times = np.arange(STEPS + 1) * STEP / 1000
        edges = (np.arange(IMAGE + 1) - IMAGE / 2) * self.scale
        rows, columns = (shares(edges, np.interp(times, ms, shift), self.side, self.blur) for shift in (down, right))
        return rows, columns

    def _log_light(self) -> NDArray[np.float64]:
        return np.log(1 + self.dark - np.minimum(np.arange(LEVELS + 100) / LEVELS, 1))

    def _moved(self, t: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
        late = np.clip(chance.standard_normal(2), -2, 2) * self.jitter
        return np.interp(t, PAUSES, PAUSES + np.array([0, 0, late[0], late[0], late[1], late[1]]))


def shares(edges: NDArray[np.floating], shift: NDArray[np.floating], side: int, blur: float) -> torch.Tensor:
    """Share of each image pixel in what each sensor pixel sees, [len(shift), side, len(edges) - 1]: boxes between
    `edges`, moved by each of `shift`, under a Gaussian `blur`; all in sensor pixels from the sensor's centre."""
    distance = edges + shift[:, None, None] - (np.arange(side) - (side - 1) / 2)[:, None]
    return torch.diff(torch.special.ndtr(torch.from_numpy(distance / blur)))

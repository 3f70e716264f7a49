"""Simulated event cameras that look at an image on a screen: `EventCamera` is the pixel model, `Camera` the ATIS that
makes the three saccades of N-MNIST (`dvs128.py` has the DVS128 of CIFAR10-DVS).

Pixel model, in continuous time (Lichtsteiner et al. 2008; Posch et al. 2011): the image moves over the sensor along a
path and is blurred by the optics; a photoreceptor follows the logarithm of the light with a time constant; when its
level has moved by the pixel's own ON or OFF threshold from a stored level, the pixel emits an event at the moment of
crossing, stores the new level, and ignores the light for its refractory time. Background events are added.

The ATIS (set-up: Orchard et al. 2015) sees dark ink on a bright screen, as the polarity of the recordings shows. Its
constants were fitted to pairs of an MNIST image and its real recording: docs/datasets.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from snnexp.dataset.events import HEIGHT, Events
from snnexp.errors import number, require

VERSION = 1  # increase when the same settings give other events, so that recordings are prepared again
IMAGE = 28  # rows and columns of an image, as in MNIST
STEP = 1500  # us; the photoreceptor's level is linear between two steps
STEPS = 211  # length of a recording: 316.5 ms
LEVELS = 4000  # light levels from a screen's black to white
Array = NDArray[np.float32]

PAUSES = (0, 90_000, 105_000, 195_000, 210_000, STEPS * STEP)  # us: start and end of each saccade
# Positions of the image's centre at 0, 10, ... 300 and 316 ms: sensor pixels right of and below the sensor's centre.
RIGHT = (
    "-2.49 -2.47 -2.60 -2.65 -2.64 -2.49 -1.88 -1.19 -0.93 -0.85 -0.82 -0.65 -0.43 0.07 0.87 1.36 "
    "1.53 2.00 2.33 2.48 2.70 2.95 3.00 2.58 1.63 0.67 -0.47 -1.45 -2.00 -2.46 -2.55 -2.32"
)
DOWN = (
    "-1.69 -1.64 -1.18 -0.42 0.72 2.03 3.02 3.53 3.63 3.60 3.28 3.26 3.45 3.07 2.24 0.96 "
    "-0.24 -1.31 -1.70 -1.75 -1.56 -1.53 -1.63 -1.77 -1.61 -1.60 -1.69 -1.76 -1.89 -1.97 -1.93 -1.96"
)
TIMES = (*range(0, 310, 10), 316)
PATH = tuple(zip(TIMES, map(float, RIGHT.split()), map(float, DOWN.split()), strict=True))  # rows of (ms, right, down)


@dataclass(frozen=True)
class EventCamera:
    """The constants of the pixel model. Raises InvalidValue for one out of range.

    blur: standard deviation of the optics, sensor pixels. dark: light of a black screen as a share of a white one.
    receptor: time constant of the photoreceptor, us. on, off: thresholds, in units of the natural logarithm. mismatch:
    relative spread of thresholds and refractory times across pixels. refractory: us, at least one step. noise:
    background events per second and pixel; noise_spread: spread of its logarithm across pixels (a few pixels are
    "hot"); noise_on: share of ON among them. seed: determines the sensor's fixed pattern and all random draws.

    A subclass defines the sizes of sensor and image (`side`, `image`: rows, and as many columns), the length of a
    `step` (us) and the number of `steps`, `_weights` and `_log_light`; the weights of image rows are rounded to
    1/`parts`.
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
        """The number of steps in a recording."""
        raise NotImplementedError

    def _weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the share of each image row in what each sensor row sees at each step, [steps + 1, side, image], and
        the same for columns."""
        raise NotImplementedError

    def _log_light(self) -> NDArray[np.float64]:
        """Return the log light of each of the LEVELS of the image, and of some levels above."""
        raise NotImplementedError

    def _moved(self, t: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
        """Return the times of events (us) as one recording has them; a subclass may shift them."""
        return t

    def record(self, images: NDArray[np.uint8], keys: Sequence[int]) -> list[Events]:
        """Record `images` uint8 [n, image, image]; `keys` [n] >= 0 seed the random draws of each.

        A recording depends on the camera, its image and its key alone, not on the rest of the batch.
        """
        n, side, step_us = len(images), self.side, self.step
        on, off, dead, rate = self._pattern()
        middle, reach = (on - off) / 2, (on + off) / 2  # stored - off .. stored + on is centre -+ reach
        chance = [np.random.default_rng((self.seed, 1, key)) for key in keys]
        ink = images.transpose(1, 0, 2).astype(np.float32)
        follow = np.float32(1 - np.exp(-step_us / self.receptor))

        # Arrays are [side rows, n, side columns], so that each half of `_see` is one matrix product.
        level = self._see(ink, 0)
        # at the start, the level is at a random place between each pixel's two thresholds
        centre = level + reach * np.stack([c.uniform(-1, 1, (side, side)) for c in chance], 1).astype(np.float32)
        pixel = (np.arange(side)[:, None, None] * side + np.arange(side) + np.zeros((1, n, 1), int)).ravel()
        free = np.zeros_like(level)  # end of each pixel's refractory time, us
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
            # elsewhere, the level crossed the threshold earlier, during the refractory time
            inside = ((first < goal) == rise) & (slope != 0)
            t = start + np.divide(goal - first, slope, out=np.zeros_like(first), where=inside)
            t = np.clip(t, free.flat[hit], start + step_us)
            free.flat[hit] = t + dead.flat[place]
            centre.flat[hit] = np.nan  # comparisons with NaN are false: the pixel is silent
            deaf = np.concatenate([deaf[~ready], hit])
            kept = np.concatenate([kept[~ready], first + slope * (t - start) + middle.flat[place]])
            found.append((hit // side % n, place, t, rise))
        return self._collect(found, rate, chance)

    def _pattern(self) -> tuple[Array, Array, Array, Array]:
        """Return the pixels' ON and OFF threshold, refractory time (us), background rate (1/s), [side, 1, side]."""
        spread = np.random.default_rng((self.seed, 0)).standard_normal((4, self.side, 1, self.side), np.float32)
        vary = np.clip(1 + self.mismatch * spread[:3], 0.3, 2)
        hot = np.exp(self.noise_spread * spread[3] - self.noise_spread**2 / 2)
        dead = np.maximum(np.float32(self.refractory) * vary[2], self.step)
        return np.float32(self.on) * vary[0], np.float32(self.off) * vary[1], dead, np.float32(self.noise) * hot

    def _see(self, ink: Array, step: int) -> Array:
        """Return the log light on the sensor [side, n, side] at `step`, from `ink` [image, n, image] in 0..255.

        Rows and columns are separable. All factors are integers and all products stay below 2^24, so float32 is exact,
        and a recording depends neither on the batch nor on the order of sums in a matrix product.
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
        """`_weights` as integers, those of columns as [steps + 1, image, side], and `_log_light`."""
        both = zip(self._weights(), (self.parts, LEVELS), strict=True)
        rows, columns = (torch.round(share * unit).float() for share, unit in both)
        return rows.numpy(), np.ascontiguousarray(columns.mT.numpy()), self._log_light().astype(np.float32)

    def _collect(
        self, found: Sequence[tuple[NDArray[Any], ...]], rate: Array, chance: list[np.random.Generator]
    ) -> list[Events]:
        """Sort the events (recording, pixel, time, polarity) by recording and time, after adding background events."""
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
    """The ATIS. To `EventCamera` it adds scale: sensor pixels per image pixel; jitter: standard deviation of the start
    of the second and third saccades, us; path: rows of (ms, right, down), see `PATH`."""

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
        rising = sound and all(a[0] < b[0] for a, b in pairwise(self.path))
        require(rising, "path", self.path, "at least two rows of (ms, right, down) with rising times")

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
    """Return the share of each image pixel in what each sensor pixel sees, [len(shift), side, len(edges) - 1]: boxes
    between `edges`, moved by each `shift`, under a Gaussian `blur`; all in sensor pixels from the sensor's centre."""
    distance = edges + shift[:, None, None] - (np.arange(side) - (side - 1) / 2)[:, None]
    return torch.diff(torch.special.ndtr(torch.from_numpy(distance / blur)))

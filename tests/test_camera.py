"""The simulated camera: deterministic, physical in simple cases, and close to the real one where data is at hand."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from snnexp.dataset.camera import STEP, STEPS, Camera
from snnexp.errors import InvalidValue

DATA = Path(os.environ.get("SNNEXP_TEST_DATA", Path(__file__).parents[1] / "../shared/data"))
real_data = pytest.mark.skipif(
    not (DATA / "nmnist").exists() or not (DATA / "mnist").exists(),
    reason=f"no nmnist and mnist in {DATA} (SNNEXP_TEST_DATA)",
)
BARS = np.zeros((3, 28, 28), np.uint8)
BARS[0, 4:24, 12:16] = BARS[1, 12:16, 4:24] = 255  # an upright bar, a lying one, nothing
QUIET = Camera(noise=0, mismatch=0, jitter=0)


def columns(recording) -> list[list[int]]:
    return [column.tolist() for column in recording]


def test_a_recording_depends_on_its_image_key_and_camera_alone() -> None:
    together = QUIET.record(BARS, [5, 6, 7])
    assert columns(together[1]) == columns(QUIET.record(BARS[1:2], [6])[0])
    assert columns(together[1]) == columns(QUIET.record(BARS[[0, 1] * 40], [6] * 80)[79])
    assert columns(together[1]) != columns(QUIET.record(BARS[1:2], [8])[0])
    assert columns(Camera().record(BARS[:1], [5])[0]) != columns(replace(Camera(), seed=1).record(BARS[:1], [5])[0])


def test_events_are_ordered_and_within_the_recording() -> None:
    for t, x, y, p in Camera().record(BARS, range(3)):
        assert t.min() >= 0
        assert t.max() < STEPS * STEP + 2 * Camera().jitter
        assert (np.diff(t) >= 0).all()
        assert max(x.max(), y.max()) < 34
        assert set(p) <= {0, 1}


def test_a_level_that_rests_exactly_at_its_threshold_is_no_division_by_zero(monkeypatch) -> None:
    class Edge(np.random.Generator):
        def uniform(self, low, high, shape):
            return np.full(shape, high)

    monkeypatch.setattr(np.random, "default_rng", lambda key: Edge(np.random.PCG64(key)))
    still = replace(QUIET, on=1.0, off=1.0, dark=1e-9, path=((0, 0.0, 0.0), (316, 0.0, 0.0)))
    with np.errstate(all="raise", under="ignore"):
        t, *_ = still.record(BARS[2:], [0])[0]
    assert t.tolist() == 34 * 34 * [0]  # each fires once, at the start, and not again


def test_a_blank_screen_gives_noise_alone_at_its_rate() -> None:
    assert len(QUIET.record(BARS[2:], [0])[0].t) == 0
    noisy = replace(QUIET, noise=2.0, noise_spread=0.0, noise_on=0.8).record(np.repeat(BARS[2:], 20, 0), range(20))
    expected = 20 * 2.0 * 34 * 34 * STEPS * STEP / 1e6  # 14,611
    total = sum(len(events.t) for events in noisy)
    assert abs(total - expected) < 4 * expected**0.5
    assert abs(np.mean(np.concatenate([events.p for events in noisy])) - 0.8) < 0.02


def test_an_image_that_does_not_move_gives_no_events() -> None:
    still = replace(QUIET, path=((0, 1.0, -1.0), (316, 1.0, -1.0)))
    assert sum(len(events.t) for events in still.record(BARS, range(3))) == 0


def test_a_dark_bar_that_moves_right_darkens_on_its_right_and_brightens_on_its_left() -> None:
    right = replace(QUIET, path=((0, -2.0, 0.0), (316, 2.0, 0.0)))
    _, x, y, p = right.record(BARS[:1], [0])[0]
    middle = (y > 10) & (y < 23)
    assert x[middle & (p == 0)].mean() - x[middle & (p == 1)].mean() == pytest.approx(4, abs=0.5)  # the bar's width
    assert 0.4 < p.mean() < 0.6


def test_lower_thresholds_give_more_events_and_the_refractory_time_keeps_events_apart() -> None:
    few, many = (len(replace(QUIET, on=level, off=level).record(BARS[:1], [0])[0].t) for level in (0.3, 0.1))
    assert many > 1.5 * few
    t, x, y, _ = replace(QUIET, on=0.02, off=0.02, refractory=3000).record(BARS[:1], [0])[0]
    pixel = 34 * y + x
    assert min(np.diff(t[pixel == k]).min() for k in np.unique(pixel) if (pixel == k).sum() > 1) >= 2999


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("blur", 0),
        ("on", -1.0),
        ("dark", "x"),
        ("refractory", 10),
        ("seed", -1),
        ("jitter", 1e4),
        ("noise_on", 1.5),
        ("path", ((0, 1),)),
        ("path", ((5, 0, 0), (1, 0, 0))),
    ],
)
def test_constants_out_of_range_are_refused_by_name(name, value) -> None:
    with pytest.raises(InvalidValue, match=f"^{name}="):
        Camera(**{name: value})


@real_data
def test_it_resembles_the_real_camera() -> None:
    from snnexp.dataset.recordings import Folder
    from snnexp.dataset.saccade import read_idx

    n = 40  # MNIST train images 401..440, which the fit did not see
    images = read_idx(DATA / "mnist/MNIST/raw/train-images-idx3-ubyte.gz")[400 : 400 + n]
    folder = Folder(DATA / "nmnist/Train", 400 + n)
    real, simulated = [folder.read(400 + k) for k in range(n)], Camera().record(images, range(n))

    def pixels(recordings) -> np.ndarray:
        return np.stack([np.bincount((p * 34 + y) * 34 + x, minlength=2 * 34 * 34) for _, x, y, p in recordings])

    assert np.corrcoef(pixels(real).ravel(), pixels(simulated).ravel())[0, 1] > 0.93
    assert pixels(simulated).sum() / pixels(real).sum() == pytest.approx(1, abs=0.1)
    assert np.mean([events.p.mean() for events in simulated]) == pytest.approx(0.5, abs=0.03)

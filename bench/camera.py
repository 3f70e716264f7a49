"""Compare the simulated ATIS camera with the real one, recording by recording.

    python bench/camera.py --data DIR              # compare: DIR/mnist as torchvision stores it, DIR/nmnist/Train
    python bench/camera.py --data DIR --fit 10     # fit the constants in ten sweeps and print them

Real recording k shows MNIST train image k. The constants of `snnexp.dataset.camera` were fitted to recordings 1..96;
the comparison uses later ones. The last column compares the camera with itself under other random numbers: it shows the
agreement that chance alone would leave to a perfect simulation.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snnexp.dataset.camera import Camera
from snnexp.dataset.events import Events
from snnexp.dataset.recordings import Folder
from snnexp.dataset.saccade import read_idx

FITTED = 96  # number of pairs used for fitting, the first ones
SACCADES = (0, 90, 210, 340)  # ms
Maps = NDArray[np.float64]


def counts(recordings: list[Events], edges: NDArray[np.float64]) -> Maps:
    """Count events between the times `edges` (ms): [n, len(edges) - 1, 2, 34, 34]. Later ones go into the last part."""
    parts = len(edges) - 1
    maps = []
    for t, x, y, p in recordings:
        part = np.clip(np.searchsorted(edges * 1000, t, side="right") - 1, 0, parts - 1)
        maps.append(np.bincount(((part * 2 + p) * 34 + y) * 34 + x, minlength=parts * 2 * 34 * 34))
    return np.stack(maps).reshape(-1, parts, 2, 34, 34).astype(float)


def alike(a: Maps, b: Maps) -> float:
    """Return the correlation of the maps of two recordings, averaged over recordings."""
    pairs = zip(a.reshape(len(a), -1), b.reshape(len(b), -1), strict=True)
    return float(np.mean([np.corrcoef(u, v)[0, 1] for u, v in pairs]))


def gaps(recordings: list[Events]) -> str:
    """Return the 1st and 50th percentile of the time (ms) between events of one pixel and polarity."""
    found = []
    for t, x, y, p in recordings:
        pixel = (p * 34 + y) * 34 + x
        order = np.argsort(pixel, kind="stable")
        found.append(np.diff(t[order])[np.diff(pixel[order]) == 0])
    return "{:.1f}, {:.1f}".format(*np.percentile(np.concatenate(found), [1, 50]) / 1000)


def compare(real: list[Events], simulated: list[Events], again: list[Events]) -> None:
    n = [np.array([len(events.t) for events in side]) for side in (real, simulated, again)]
    print(f"{'':44}{'real':>18}{'simulated':>18}{'simulated again':>18}")

    def row(what: str, *values: str) -> None:
        print(f"{what:44}" + "".join(f"{value:>18}" for value in values))

    row("events a recording, mean", *(f"{k.mean():.0f}" for k in n))
    row("5th, 50th, 95th percentile", *("{:.0f}, {:.0f}, {:.0f}".format(*np.percentile(k, [5, 50, 95])) for k in n))
    sides = (real, simulated, again)
    row("share of ON", *(f"{np.concatenate([e.p for e in side]).mean():.3f}" for side in sides))
    row("ms between events of a pixel, 1st, 50th pct.", *(gaps(side) for side in sides))
    print("correlation with the real (simulated) recording:")
    row("events a recording", "", *(f"{np.corrcoef(n[k], n[k + 1])[0, 1]:.3f}" for k in (0, 1)))
    saccades = [counts(side, np.array(SACCADES)) for side in sides]
    for what, view in (
        ("events of a pixel", lambda m: m.sum((1, 2))),
        ("events of a pixel and polarity", lambda m: m.sum(1)),
        ("the same by saccade", lambda m: m),
        *((f"the same, saccade {k + 1} alone", lambda m, k=k: m[:, k]) for k in range(3)),
    ):
        row(what, "", *(f"{alike(view(a), view(b)):.3f}" for a, b in pairwise(saccades)))
    fine = [counts(side, np.arange(0, 331, 10)) for side in sides]
    row("the same in each 10 ms", "", *(f"{alike(a, b):.3f}" for a, b in pairwise(fine)))
    rates = [m.mean(0).sum((1, 2, 3)) for m in fine]
    row("mean events in each 10 ms", "", *(f"{np.corrcoef(a, b)[0, 1]:.3f}" for a, b in pairwise(rates)))
    print("mean events in each 10 ms, real and simulated:")
    for rate in rates[:2]:
        print(" ".join(f"{value:.0f}" for value in rate))


def fit(images: NDArray[np.uint8], real: list[Events], sweeps: int) -> Camera:
    """Fit the constants by coordinate search, starting from the present ones.

    The loss is the squared difference of the event maps in 8 ms, plus five times that of their sums over all pixels and
    recordings, each relative to the real ones.
    """
    camera = replace(Camera(), jitter=0.0)  # summed over recordings, jitter looks like a slower saccade
    edges = np.arange(0, 321, 8.0)
    goal = counts(real, edges)
    names = ("scale", "blur", "dark", "receptor", "on", "off")
    ms = np.array(camera.path)[:, 0]

    def build(v: NDArray[np.float64]) -> Camera:
        path = np.column_stack([ms, v[len(names) :].reshape(2, -1).T])
        return replace(
            camera,
            path=tuple(map(tuple, path.tolist())),
            **dict(zip(names, np.exp(v[: len(names)]).tolist(), strict=True)),
        )

    def loss(v: NDArray[np.float64]) -> float:
        maps = counts(build(v).record(images, range(len(images))), edges)
        total, aim = maps.sum((0, 2, 3, 4)), goal.sum((0, 2, 3, 4))
        return float(((maps - goal) ** 2).sum() / (goal**2).sum() + 5 * ((total - aim) ** 2).sum() / (aim**2).sum())

    v = np.concatenate([np.log([getattr(camera, name) for name in names]), np.array(camera.path)[:, 1:].T.ravel()])
    step, best = np.where(np.arange(len(v)) < len(names), 0.05, 0.2), loss(v)
    for sweep in range(sweeps):
        for k in np.random.default_rng(sweep).permutation(len(v)):
            for direction in (1, -1):
                w = v.copy()
                w[k] += direction * step[k]
                if (new := loss(w)) < best:
                    v, best, step[k] = w, new, 1.4 * direction * step[k]
                    break
            else:
                step[k] /= 2
        print(f"sweep {sweep + 1}: {best:.4f}", flush=True)
    return build(v)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds mnist and nmnist")
    parser.add_argument("--recordings", type=int, default=900, help="pairs to compare")
    parser.add_argument("--fit", type=int, metavar="SWEEPS", help="fit the constants instead")
    args = parser.parse_args()
    first, last = (0, FITTED) if args.fit else (1000 - args.recordings, 1000)
    images = read_idx(next((args.data / "mnist/MNIST/raw").glob("train-images-idx3-ubyte*")))[first:last]
    folder = Folder(args.data / "nmnist/Train")
    real = [folder.read(k) for k in range(first, last)]
    if args.fit:
        print(fit(images, real, args.fit))
        return
    parts = np.array_split(np.arange(len(images)), len(images) // 32 + 1)
    simulated, again = (
        [events for part in parts for events in Camera().record(images[part], (part + key).tolist())]
        for key in (0, 10_000)
    )
    print(f"MNIST train images {first + 1}..{last}")
    compare(real, simulated, again)


if __name__ == "__main__":
    main()

"""Event datasets: real N-MNIST files in folders and archives, prepared once and never half; simulated recordings."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from omegaconf import OmegaConf

from conftest import ROOT
from snnexp.build import build
from snnexp.dataset.base import Data
from snnexp.dataset.camera import Camera
from snnexp.dataset.events import Events, write
from snnexp.dataset.nmnist import nmnist
from snnexp.dataset.saccade import digits_saccade, mnist_saccade
from snnexp.dataset.saccade import enlarged_digits as digits
from snnexp.errors import InvalidValue, UserError
from snnexp.testing import DatasetContract
from test_camera import DATA, real_data
from test_dvs import CLASSES, dvs_files
from test_images import fake_cifar, image_files

SIZES = {"Train": 40, "Test": 12}
EVENTS = 100  # a recording
CHILD = """
import sys
from snnexp.dataset.saccade import mnist_saccade
data = mnist_saccade(sys.argv[1], sys.argv[2], 4)
print(int(data.train.x.sum()), len(data.train), len(data.val), len(data.test))
"""


def nmnist_files(root: Path) -> Path:
    """A small N-MNIST in folders: recording k has the label k % 10 and random events."""
    draw = np.random.default_rng(0)
    for split, n in SIZES.items():
        for k in range(1, n + 1):
            folder = root / split / str(k % 10)
            folder.mkdir(parents=True, exist_ok=True)
            t, x, y, p = (
                np.sort(draw.integers(0, 310_000, EVENTS)),
                *draw.integers(0, 34, (2, EVENTS)),
                draw.integers(0, 2, EVENTS),
            )
            write(folder / f"{k:05d}.bin", Events(t, x, y, p))
    return root


def mnist_files(root: Path, kind: str = "MNIST", sizes: tuple[int, int] = (300, 60)) -> Path:
    """A small MNIST, as torchvision stores it, made of scikit-learn's digits."""
    raw = root / kind / "raw"
    raw.mkdir(parents=True)
    for part, images, n in zip(("train", "t10k"), digits(), sizes, strict=True):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3]) + np.array([n, 28, 28], ">u4").tobytes() + images.x[:n].tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + np.array([n], ">u4").tobytes() + images.y[:n].astype(np.uint8).tobytes()
        )
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return nmnist_files(tmp_path / "nmnist")


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    return mnist_files(tmp_path / "mnist")


def zipped(root: Path, split: str, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(into / f"{split}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (root / split).rglob("*.bin"):
            archive.write(path, path.relative_to(root))


def leftovers(cache: Path) -> list[Path]:
    return list(cache.rglob("*.partial"))


def idx(name: str, kind: str) -> Callable[..., dict[str, object]]:
    return lambda folder, patch: mnist_files(folder / name, kind, (40, 10)) and {}


def cifar(name: str) -> Callable[..., dict[str, object]]:
    return lambda folder, patch: fake_cifar(folder / name, getattr(torchvision.datasets, name.upper()), patch) or {}


def imagenet(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, object]:
    image_files(folder / "imagenet")
    (folder / "imagenet/test").rename(folder / "imagenet/val")
    return {"size": 8, "resize": 12}


# For options that need it: write their files below `folder`, and return the settings that make them small.
OPTIONS: dict[str, Callable[[Path, pytest.MonkeyPatch], dict[str, object]]] = {
    "cifar10": cifar("cifar10"),
    "cifar100": cifar("cifar100"),
    "cifar10_dvs": lambda folder, patch: (
        dvs_files(folder / "cifar10_dvs") and {"classes": list(CLASSES[:3]), "size": 32}
    ),
    "cifar10_saccade": lambda folder, patch: {"samples": 4, "size": 16, "camera": {"loops": 1}, "average": True},
    "fashion_mnist": idx("fashion_mnist", "FashionMNIST"),
    "fashion_mnist_saccade": idx("fashion_mnist", "FashionMNIST"),
    "image_folder": lambda folder, patch: image_files(folder / "image_folder") and {"size": 12},
    "imagenet": imagenet,
    "mnist": idx("mnist", "MNIST"),
    "mnist_saccade": idx("mnist", "MNIST"),
    "nmnist": lambda folder, patch: nmnist_files(folder / "nmnist") and {},
}


DATASETS = sorted(path.stem for path in (ROOT / "conf/dataset").glob("*.yaml"))


def test_none_is_missing() -> None:
    assert set(OPTIONS) <= set(DATASETS)
    assert len(OPTIONS) == 11


class TestEveryDataset(DatasetContract):
    @pytest.fixture(autouse=True, scope="class", params=DATASETS)
    @classmethod
    def _option(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Path):
        name, folder = request.param, tmp_path_factory.mktemp(request.param)
        prepared = cache if name in ("digits_saccade", "cifar10_saccade") else folder  # other tests record the same
        option = OmegaConf.load(ROOT / f"conf/dataset/{name}.yaml")
        with pytest.MonkeyPatch.context() as patch:
            option.merge_with(OPTIONS[name](folder, patch) if name in OPTIONS else {})
            config = {"seed": 0, "timesteps": 4, "data_dir": str(folder), "cache_dir": str(prepared), "dataset": option}
            cls.config = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
            yield

    def make(self) -> Data:
        return build("dataset", self.config, Data)


def test_folders_give_splits_that_share_one_array_and_no_event_is_lost(root, tmp_path) -> None:
    data = nmnist(root, tmp_path / "cache", 5)
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 12)
    assert data.train.x.shape == (52, 5, 2, 34, 34)
    assert data.shape == (2, 34, 34)
    assert data.temporal
    assert data.train.x.dtype == torch.uint8
    assert data.train.x.sum((1, 2, 3, 4)).tolist() == 52 * [EVENTS]
    assert data.train.y.tolist() == [k % 10 for n in SIZES.values() for k in range(1, n + 1)]
    assert data.train.x.data_ptr() == data.test.x.data_ptr()
    assert set(data.train.index.tolist()) | set(data.val.index.tolist()) == set(range(40))
    assert data.test.index.tolist() == list(range(40, 52))


def test_the_seed_decides_what_validates_and_nothing_is_binned_again(root, tmp_path) -> None:
    first, second, same = (nmnist(root, tmp_path / "cache", 5, seed=seed, validation=0.5) for seed in (0, 1, 0))
    assert first.val.index.tolist() == same.val.index.tolist() != second.val.index.tolist()
    assert len(list((tmp_path / "cache").rglob("frames.npy"))) == 1


def test_archives_give_what_folders_give_wherever_they_lie(root, tmp_path) -> None:
    zipped(root, "Train", tmp_path / "zips")
    zipped(root, "Test", tmp_path / "zips/download")
    from_zip, from_folder = (nmnist(r, tmp_path / "cache", 5) for r in (tmp_path / "zips", root))
    assert torch.equal(from_zip.train.x, from_folder.train.x)
    assert torch.equal(from_zip.train.y, from_folder.train.y)


def test_the_root_is_not_written_to(root, tmp_path) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
    nmnist(root, tmp_path / "cache", 5)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))


def test_settings_and_files_decide_what_is_binned(root, tmp_path) -> None:
    cache = tmp_path / "cache"
    for settings in ({}, {"bins": "time"}, {"values": "binary"}, {"train_samples": 20}):
        data = nmnist(root, cache, 5, **settings)
    assert len(data.train) == 18
    write(root / "Train/1/00001.bin", Events(*np.ones((4, 7), np.int64)))
    assert nmnist(root, cache, 5).train.x[0].sum() == 7
    assert len(list(cache.rglob("frames.npy"))) == 5


def test_more_than_255_events_in_a_cell_are_cut_and_told(root, tmp_path, caplog) -> None:
    write(root / "Train/1/00001.bin", Events(*np.ones((4, 300), np.int64)))
    for _ in range(2):  # when it is binned and when it is found prepared
        caplog.clear()
        assert nmnist(root, tmp_path / "cache", 1).train.x[0].sum() == 255
        assert "1 cells hold more than 255 events" in caplog.text


def test_absent_data_says_what_to_download_and_where_it_looked(tmp_path) -> None:
    with pytest.raises(UserError, match=r"Train\.zip and Test\.zip from https://www\.garrickorchard\.com") as error:
        nmnist(tmp_path / "nowhere", tmp_path / "cache", 5)
    assert str(tmp_path / "nowhere") in str(error.value)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.* in .*nowhere/MNIST/raw.*dataset\.download=true"):
        mnist_saccade(tmp_path / "nowhere", tmp_path / "cache", 5)


def test_a_damaged_file_is_named_nothing_is_left_and_its_repair_suffices(root, tmp_path) -> None:
    victim = root / "Train/3/00013.bin"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=r"Train/3/00013\.bin: 498 bytes are not a whole number of 5-byte events"):
        nmnist(root, tmp_path / "cache", 5)
    assert not list((tmp_path / "cache").rglob("frames*.npy")) + leftovers(tmp_path / "cache")
    victim.write_bytes(whole)
    assert len(nmnist(root, tmp_path / "cache", 5).train) == 36


def test_a_truncated_archive_is_refused_even_beside_folders(root, tmp_path) -> None:
    zipped(root, "Train", root)
    archive = root / "Train.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"Train\.zip is not a complete zip archive"):
        nmnist(root, tmp_path / "cache", 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timesteps", 0),
        ("bins", "events"),
        ("values", "float"),
        ("duration", 0),
        ("validation", 0.0),
        ("validation", 1.0),
        ("train_samples", 1),
    ],
)
def test_values_out_of_range_are_refused_by_name(root, tmp_path, name, value) -> None:
    with pytest.raises(InvalidValue, match=f"^{name}="):
        nmnist(**{"root": root, "cache": tmp_path / "cache", "timesteps": 5, name: value})


def child(mnist: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(mnist), str(cache)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def contents(cache: Path) -> dict[str, bytes]:
    files = [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != "manifest.json"]
    return {str(p.relative_to(cache)): p.read_bytes() for p in files}  # a manifest has times


def test_killed_preparation_is_redone_and_two_at_once_agree(mnist, tmp_path) -> None:
    cache, clean = tmp_path / "cache", tmp_path / "clean"
    victim = child(mnist, cache)
    deadline = time.monotonic() + 60
    while not list(cache.rglob("*.partial/Train/*/*.bin")) and time.monotonic() < deadline:
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    assert leftovers(cache), "the process was not killed while it prepared"
    assert not list(cache.rglob("frames.npy"))

    both = [child(mnist, cache) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    data = mnist_saccade(mnist, clean, 4)
    assert said[0][0].split() == [str(int(data.train.x.sum())), "270", "30", "60"]
    assert not leftovers(cache)
    assert contents(cache) == contents(clean)  # byte for byte, whichever process and threads recorded


def test_limits_and_the_camera_decide_what_is_recorded(mnist, tmp_path) -> None:
    data = mnist_saccade(mnist, tmp_path, 4, train_samples=20, test_samples=5, camera=Camera(noise=0.0))
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 5)
    other = mnist_saccade(mnist, tmp_path, 4, train_samples=20, test_samples=5, camera=Camera(noise=5.0))
    assert other.train.x.sum() > data.train.x.sum()


def test_damaged_mnist_files_are_named(mnist, tmp_path) -> None:
    path = mnist / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="train-images-idx3-ubyte is damaged"):
        mnist_saccade(mnist, tmp_path, 4)


def test_the_embedded_digits_are_1437_and_360_and_resemble_mnist(cache) -> None:
    data = digits_saccade(cache, 4)
    assert (len(data.train), len(data.val), len(data.test)) == (1293, 144, 360)
    assert data.test.y[data.test.index].bincount().tolist() == 10 * [36]
    assert 2000 < data.train.x.sum((1, 2, 3, 4)).float().mean() < 6000
    assert len(list((cache / "digits_saccade").glob("recordings-*/T*/*/*.bin"))) == 1797


@real_data
def test_the_real_recordings_are_those_of_the_first_mnist_images_and_no_event_is_lost(tmp_path) -> None:
    from snnexp.dataset.saccade import read_idx

    data = nmnist(DATA / "nmnist", tmp_path, 10)
    assert (len(data.train), len(data.val), len(data.test)) == (900, 100, 100)
    raw = DATA / "mnist/MNIST/raw"
    labels = np.concatenate(
        [read_idx(raw / "train-labels-idx1-ubyte.gz")[:1000], read_idx(raw / "t10k-labels-idx1-ubyte.gz")[:100]]
    )
    assert data.train.y.tolist() == labels.tolist()
    files = (DATA / "nmnist").rglob("*.bin")
    assert int(data.train.x.sum()) == sum(file.stat().st_size for file in files) // 5
    shutil.rmtree(tmp_path)

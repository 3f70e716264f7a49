"""Image datasets: prepared once, split by seed, normalised in the network, augmented by (seed, epoch, step)."""

from __future__ import annotations

import atexit
import gzip
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from conftest import ROOT, Done
from snnexp.config import conf_dir
from snnexp.dataset import standard
from snnexp.dataset.augment import Augment, drawn_boxes, shifted, zoomed
from snnexp.dataset.base import Data, Split
from snnexp.dataset.digits import digits
from snnexp.dataset.image_folder import image_folder
from snnexp.dataset.saccade import read_idx
from snnexp.errors import InvalidValue, UserError
from snnexp.session import Session
from snnexp.training import Fit, Progress, load_checkpoint, mix, validate
from test_camera import DATA

COLOURS = {"blue": (20, 40, 200), "green": (30, 180, 60), "red": (220, 10, 0)}


def image_files(folder: Path) -> Path:
    """Three classes of coloured images, 6 + 2 each, in three formats and two sizes, one of them grey."""
    for part, n in (("train", 6), ("test", 2)):
        for name, colour in COLOURS.items():
            (folder / part / name).mkdir(parents=True)
            for k in range(n):
                size = (12, 12) if k % 2 else (20, 14)
                kind = ("png", "jpg", "bmp")[k % 3]
                Image.new("RGB", size, tuple(c + k for c in colour)).save(
                    folder / part / name / f"{k}.{kind}", quality=95
                )
    Image.new("L", (12, 12), 255).save(folder / "train/red/9.png")
    (folder / "train/red/notes.txt").write_text("no image")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_files(tmp_path / "images")


# Folders --------------------------------------------------------------------------------------------------------------


def test_folders_become_one_array_with_labels(root, tmp_path):
    data = image_folder(root, size=8, cache=tmp_path / "cache", seed=1)
    assert (data.shape, data.classes, data.temporal) == ((3, 8, 8), ("blue", "green", "red"), False)
    assert (len(data.train), len(data.val), len(data.test)) == (17, 2, 6)
    x, y = next(data.test.batches(6))
    assert (x.dtype, x.shape, y.tolist()) == (torch.uint8, (6, 3, 8, 8), [0, 0, 1, 1, 2, 2])
    colours = x.float().mean((2, 3))
    for row, label in zip(colours, y, strict=True):
        assert (row - torch.tensor(list(COLOURS.values())[label])).abs().max() < 4
    assert x.flatten(2).float().std(2).max() < 1  # scaled and cut, nothing of a border


def test_mean_and_std_are_of_the_training_images_or_given(root, tmp_path):
    data = image_folder(root, size=8, cache=tmp_path / "cache")
    x = data.train.x[:19].double() / 255  # 18 and a grey one train and validate
    mean, std = data.normalize
    assert mean == pytest.approx(x.mean((0, 2, 3)).tolist(), abs=1e-9)
    assert std == pytest.approx(x.transpose(0, 1).flatten(1).std(1, correction=0).tolist(), abs=1e-9)
    (meta,) = (tmp_path / "cache").glob("image_folder/images-*/meta.json")
    assert json.loads(meta.read_text())["mean"] == list(mean)
    given = image_folder(root, size=8, cache=tmp_path / "cache", mean=[0.5, 0.5, 0.5], std=[0.1, 0.2, 0.3])
    assert given.normalize == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


def test_prepared_once_and_anew_when_a_file_or_the_size_changes(root, tmp_path):
    def prepared() -> set[str]:
        return {p.name for p in (tmp_path / "cache/image_folder").iterdir() if p.is_dir()}

    image_folder(root, size=8, cache=tmp_path / "cache")
    first = prepared()
    image_folder(root, size=8, cache=tmp_path / "cache", seed=3, validation=0.5, augment=Augment(flip=True))
    assert prepared() == first
    image_folder(root, size=10, cache=tmp_path / "cache")
    assert len(prepared()) == 2
    Image.new("RGB", (12, 12)).save(root / "train/red/0.png")
    image_folder(root, size=8, cache=tmp_path / "cache")
    assert len(prepared()) == 3


def test_in_memory_or_mapped_is_the_same(root, tmp_path):
    a, b = (image_folder(root, size=8, channels=1, cache=tmp_path / "cache", in_memory=m) for m in (False, True))
    assert torch.equal(a.train.x, b.train.x)
    assert a.shape == (1, 8, 8)


def test_the_validation_split_is_by_seed_and_never_of_test_images(root, tmp_path):
    splits = [image_folder(root, size=8, cache=tmp_path / "cache", seed=s, validation=0.3) for s in (0, 0, 1)]
    rows = [sorted(d.val.index.tolist()) for d in splits]
    assert rows[0] == rows[1] != rows[2]
    for d in splits:
        assert sorted([*d.train.index.tolist(), *d.val.index.tolist()]) == list(range(19))
        assert d.test.index.tolist() == list(range(19, 25))


def test_imagenets_layout(root, tmp_path):
    (root / "test").rename(root / "val")
    data = image_folder(root, size=8, name="imagenet", test="val", cache=tmp_path / "cache")
    assert len(data.test) == 6
    with pytest.raises(UserError, match=r"no images in .*/test"):
        image_folder(root, size=8, cache=tmp_path / "cache")


def test_imagenets_recipe_parts_of_the_stored_image_in_training_and_its_middle_after(root, tmp_path):
    """torchvision's evaluation: shorter side to 10, the middle 8 x 8."""
    from torchvision.transforms.v2 import functional

    made = {
        zoom: image_folder(root, size=8, resize=10, cache=tmp_path / "cache", augment=Augment(zoom=zoom, flip=True))
        for zoom in (None, (0.2, 1.0))
    }
    plain, zoomed = made.values()
    assert plain.shape == zoomed.shape == (3, 8, 8)
    (stored,) = (tmp_path / "cache/image_folder").glob("images-*/images.npy")
    whole = torch.from_numpy(np.load(stored))
    assert whole.shape[1:] == (3, 10, 10)
    for data in made.values():
        for split in (data.val, data.test):
            assert torch.equal(split.x, functional.center_crop(whole, [8, 8]))
    assert torch.equal(plain.train.x, plain.val.x)
    assert torch.equal(zoomed.train.x, whole)
    x, y = next(zoomed.train.batches(6))
    assert zoomed.augment(x, 0).shape == plain.augment(x[:, :, 1:9, 1:9], 0).shape == (6, 3, 8, 8)
    again = image_folder(root, size=8, resize=10, cache=tmp_path / "cache", augment=Augment(zoom=(0.2, 1.0), flip=True))
    assert torch.equal(again.augment(x, 7), zoomed.augment(x, 7))
    assert y.tolist() == [zoomed.train.y[row].item() for row in zoomed.train.index[:6]]


def test_folders_refuse(root, tmp_path):
    with pytest.raises(UserError, match=r"no images in /nowhere/train: .* dataset.root"):
        image_folder("/nowhere", cache=tmp_path)
    with pytest.raises(UserError, match=r"12 x 12 pixels, the first image 14 x 20: set dataset.size"):
        image_folder(root, cache=tmp_path)
    with pytest.raises(InvalidValue, match=r"resize=8 .* null unless size is set"):
        image_folder(root, resize=8, cache=tmp_path)
    for name, value in (
        ("size", 0),
        ("resize", 7),
        ("channels", 2),
        ("validation", 1.0),
        ("mean", [0.1]),
        ("std", [0.0, 1, 1]),
    ):
        with pytest.raises(InvalidValue) as error:
            image_folder(root, **{"size": 8, "cache": tmp_path, name: value})
        assert error.value.name == name
    (root / "train/white").mkdir()
    with pytest.raises(UserError, match=r"no images in the class folder .*train/white"):
        image_folder(root, size=8, cache=tmp_path)
    (root / "train/white").rmdir()
    (root / "train/red/bad.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"red/bad.png cannot be read as an image"):
        image_folder(root, size=8, cache=tmp_path)
    (root / "train/red/bad.png").unlink()
    whole = (root / "train/red/0.png").read_bytes()
    (root / "train/red/0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"red/0.png (is damaged|cannot be read as an image)"):
        image_folder(root, size=8, cache=tmp_path)
    (root / "train/red/0.png").write_bytes(whole)
    (root / "test/yellow").mkdir()
    Image.new("RGB", (12, 12)).save(root / "test/yellow/0.png")
    with pytest.raises(UserError, match=r"test/yellow is not a class of .*blue, green, red"):
        image_folder(root, size=8, cache=tmp_path)
    assert not list(tmp_path.glob("image_folder/images-*.partial"))


# The standard sets ----------------------------------------------------------------------------------------------------


def test_digits_need_nothing():
    data = digits(seed=0)
    assert (data.shape, len(data.train), len(data.val), len(data.test)) == ((1, 8, 8), 1293, 144, 360)
    assert (int(data.train.x.min()), int(data.train.x.max())) == (0, 255)
    assert torch.bincount(data.test.y[data.test.index]).tolist() == 10 * [36]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_gzipped_or_not(name, tmp_path):
    raw, draw = tmp_path / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name] / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    x, y = draw.integers(0, 256, (50, 28, 28), np.uint8), draw.integers(0, 10, 50, np.uint8)
    for part, opened in (("train", gzip.open), ("t10k", open)):
        suffix = ".gz" if opened is gzip.open else ""
        with opened(raw / f"{part}-images-idx3-ubyte{suffix}", "wb") as file:
            file.write(bytes([0, 0, 8, 3]) + np.array([50, 28, 28], ">u4").tobytes() + x.tobytes())
        with opened(raw / f"{part}-labels-idx1-ubyte{suffix}", "wb") as file:
            file.write(bytes([0, 0, 8, 1]) + np.array([50], ">u4").tobytes() + y.tobytes())
    data = getattr(standard, name)(tmp_path, cache=tmp_path / "cache")
    assert data.shape == (1, 28, 28)
    assert torch.equal(data.test.x[50:, 0], torch.from_numpy(x))
    assert data.test.y[50:].tolist() == y.tolist()


@pytest.mark.skipif(not (DATA / "mnist").exists(), reason=f"no mnist in {DATA} (SNNEXP_TEST_DATA)")
def test_mnist_is_mnist(tmp_path):
    data = standard.mnist(DATA / "mnist", cache=tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (54_000, 6_000, 10_000)
    assert data.normalize[0] + data.normalize[1] == pytest.approx((0.1307, 0.3081), abs=1e-4)  # the well-known ones
    images = read_idx(DATA / "mnist/MNIST/raw/t10k-images-idx3-ubyte.gz")
    assert torch.equal(data.test.x[60_000:, 0], torch.from_numpy(images.copy()))


def fake_cifar(folder: Path, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images in the format of CIFAR, with torchvision's checksums set to what they are."""
    import hashlib

    draw, (label, n_classes) = (
        np.random.default_rng(0),
        ("labels", 10) if kind.__name__ == "CIFAR10" else ("fine_labels", 100),
    )
    (folder / kind.base_folder).mkdir(parents=True)

    def write(name: str, content: object) -> list[str]:
        path = folder / kind.base_folder / name
        path.write_bytes(pickle.dumps(content))
        return [name, hashlib.md5(path.read_bytes()).hexdigest()]

    for listed in ("train_list", "test_list"):
        monkeypatch.setattr(
            kind,
            listed,
            [
                write(
                    name,
                    {
                        "data": draw.integers(0, 256, (20, 3072), np.uint8),
                        label: draw.integers(0, n_classes, 20).tolist(),
                    },
                )
                for name, _ in getattr(kind, listed)
            ],
        )
    filename = kind.meta["filename"]
    monkeypatch.setattr(
        kind, "meta", kind.meta | {"md5": write(filename, {kind.meta["key"]: [str(k) for k in range(n_classes)]})[1]}
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_files(name, tmp_path, monkeypatch):
    from torchvision import datasets

    kind = getattr(datasets, name.upper())
    fake_cifar(tmp_path, kind, monkeypatch)
    data = getattr(standard, name)(tmp_path, cache=tmp_path / "cache")
    reference = kind(str(tmp_path), train=False)
    assert data.shape == (3, 32, 32)
    assert len(data.classes) == (10 if name == "cifar10" else 100)
    x, y = next(data.test.batches(20))
    assert torch.equal(x.permute(0, 2, 3, 1), torch.from_numpy(reference.data))
    assert y.tolist() == reference.targets
    damaged = tmp_path / kind.base_folder / kind.test_list[0][0]
    damaged.write_bytes(damaged.read_bytes() + b"?")
    with pytest.raises(UserError, match="does not hold the published files"):
        getattr(standard, name)(tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_without_files_and_without_a_network(name, tmp_path, monkeypatch):
    import urllib.request

    with pytest.raises(UserError, match=r"dataset.download=true"):
        getattr(standard, name)(tmp_path / "none", cache=tmp_path)

    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(UserError, match=r"cannot be fetched to .*none: .* Without a network") as error:
        getattr(standard, name)(tmp_path / "none", download=True, cache=tmp_path)
    assert str(tmp_path) in str(error.value)


# Augmentation ---------------------------------------------------------------------------------------------------------

POLICIES = [
    {"zoom": (0.3, 1.0)},
    {"crop": 2},
    {"flip": True},
    {"cutout": 4},
    {"policy": "cifar10"},
    {"policy": "imagenet"},
    {"crop": 4, "flip": True, "policy": "svhn", "cutout": 8},
]


def batch(n: int = 64, channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("settings", POLICIES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_keeps_shape_and_range_and_is_a_function_of_its_seed(settings, channels):
    augment, x = Augment(**settings), batch(channels=channels)
    before, state = x.clone(), torch.get_rng_state()
    first = augment(x, 5)
    assert (first.dtype, first.shape) == (torch.uint8, x.shape)
    assert torch.equal(x, before), "the dataset itself must stay as it is"
    assert torch.equal(torch.get_rng_state(), state), "nor may training's own random numbers be used up"
    torch.rand(7)
    assert torch.equal(augment(x, 5), first)
    assert not torch.equal(augment(x, 6), first)
    assert not torch.equal(first, x)


@pytest.mark.parametrize("settings", POLICIES, ids=str)
def test_augmentation_keeps_labels_each_image_becomes_that_of_its_own_row(settings):
    augment, x = Augment(**settings), batch()
    first = augment(x, 5)
    for k in (0, 17, 63):
        other = x.clone()
        other[k] = 255 - x[k].flip(1)
        changed = (augment(other, 5) != first).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == [k]


def test_crops_are_torchvisions_crops_of_the_padded_image():
    from torchvision.transforms.v2 import functional

    x = batch(81, side=7)
    down, right = torch.arange(81) // 9, torch.arange(81) % 9
    ours = shifted(x, 4, down, right)
    padded = functional.pad(x, [4, 4])
    for k in range(81):
        assert torch.equal(ours[k], functional.crop(padded[k], int(down[k]), int(right[k]), 7, 7))


def test_zoom_is_torchvisions_resized_crop():
    """To a grey level, but for the outermost pixels, which here see the image beyond the box."""
    from torchvision.transforms.v2 import functional

    x = F.interpolate(batch(20, side=4).float(), size=32, mode="bilinear").round().byte()  # smooth
    for side in (16, 24):
        for k, (top, left, height, width) in enumerate([(0, 0, 32, 32), (3, 5, 20, 27), (12, 0, 17, 13)]):
            box = torch.tensor([[top, left, height, width]]) / 32
            expected = functional.resized_crop(x[k : k + 1], top, left, height, width, [side, side], antialias=False)
            off = (zoomed(x[k : k + 1], box, side).int() - expected.int()).abs()
            assert off[:, :, 1:-1, 1:-1].max() <= 1


def test_zoom_draws_areas_and_aspects_as_it_says():
    top, left, height, width = drawn_boxes(10_000, (0.1, 0.5), torch.Generator().manual_seed(0)).T
    area, aspect = height * width, width / height
    assert 0.1 <= area.min() < 0.105
    assert 0.495 < area.max() <= 0.5 + 1e-6
    assert area.mean().item() == pytest.approx(0.3, abs=0.01)
    assert 0.75 - 1e-4 <= aspect.min() < 0.76
    assert 1.32 < aspect.max() <= 4 / 3 + 1e-4
    assert aspect.log().mean().abs() < 0.01
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1 + 1e-6


def test_how_often_and_how_far():
    n = 4096
    x = torch.zeros(n, 1, 9, 9, dtype=torch.uint8)
    x[:, :, 4, 4] = 255
    moved = Augment(crop=2)(x, 0).flatten(1).argmax(1)
    rows, columns = moved // 9 - 4, moved % 9 - 4
    for shift in (rows, columns):
        assert torch.bincount(shift + 2, minlength=5).float().div(n).sub(0.2).abs().max() < 0.03
    assert torch.corrcoef(torch.stack([rows, columns]).float())[0, 1].abs() < 0.05
    x = torch.arange(9, dtype=torch.uint8).expand(n, 1, 9, 9)
    flipped = Augment(flip=True)(x, 0)[:, 0, 0, 0] == 8
    assert flipped.float().mean().item() == pytest.approx(0.5, abs=0.03)
    cut = (Augment(cutout=4)(torch.zeros(n, 1, 16, 16, dtype=torch.uint8), 0) == 128).sum((1, 2, 3))
    assert cut.max() == 16
    assert cut.min() >= 4  # centred in the image, so at least a quarter of the square is inside
    assert set(cut.tolist()) <= {a * b for a in range(2, 5) for b in range(2, 5)}


def test_none_changes_nothing_and_policies_differ_from_image_to_image():
    x = batch(32)
    assert Augment()(x, 3) is x
    same = x[:1].expand(32, 3, 16, 16).contiguous()
    kinds = {bytes(image.numpy().tobytes()) for image in Augment(policy="cifar10")(same, 0)}
    assert len(kinds) > 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("zoom", [0.1]),
        ("zoom", [0.5, 0.1]),
        ("zoom", [0, 1]),
        ("zoom", 0.5),
        ("crop", -1),
        ("crop", 1.5),
        ("flip", 1),
        ("policy", "mnist"),
        ("cutout", -4),
    ],
)
def test_augmentation_refuses(name, value):
    with pytest.raises(InvalidValue) as error:
        Augment(**{name: value})
    assert error.value.name == name


# On the command line --------------------------------------------------------------------------------------------------

QUICK = (
    "dataset=digits",
    "model=convnet",
    "model.width=8",
    "neuron=qcfs",
    "loss=cross_entropy",
    "optimizer.lr=0.01",
    "trainer.epochs=2",
    "trainer.threads=1",
    "tracking=none",
)


def composed(*overrides: str) -> dict[str, object]:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)


def weights(done: Done) -> dict[str, torch.Tensor]:
    (folder,) = done.runs()
    return dict(torch.load(folder / "last.pt", weights_only=True)["model"])


def test_an_ann_on_images_from_the_command_line(snnexp: Callable[..., Done]) -> None:
    done = snnexp(*QUICK, "dataset.augment.crop=1")
    assert done.code == 0, done.err
    assert done.result()["test/accuracy"] > 0.6
    (folder,) = done.runs()
    assert {p.name for p in (folder / "figures").iterdir()} == {"confusion.png", "learning.png"}
    net = torch.load(folder / "model.pt", weights_only=False)
    data = digits()
    x, y = next(data.test.batches(360))
    accuracy = (net.eval()(x).mean(0).argmax(1) == y).float().mean().item()  # images as they are, 0..255
    assert accuracy == pytest.approx(done.result()["test/accuracy"])


def test_augmented_runs_repeat_and_the_seed_of_a_step_is_its_own(
    monkeypatch: pytest.MonkeyPatch, snnexp: Callable[..., Done]
) -> None:
    import shutil

    seeds: list[list[int]] = []
    plain = Augment.__call__

    def noted(self: Augment, x: torch.Tensor, seed: int) -> torch.Tensor:
        seeds[-1].append(seed)
        return plain(self, x, seed)

    monkeypatch.setattr(Augment, "__call__", noted)
    kept = []
    for _ in range(2):
        seeds.append([])
        done = snnexp(*QUICK, "dataset.augment.crop=1", "dataset.augment.flip=true")
        kept.append(weights(done))
        shutil.rmtree(done.outputs)
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == len(seeds[0]) == 2 * 21  # epochs x steps, all different
    assert all(torch.equal(a, b) for a, b in zip(kept[0].values(), kept[1].values(), strict=True))


class Killed(Exception):
    pass


BRIEF = (
    *QUICK,
    "dataset.augment.crop=1",
    "dataset.augment.policy=svhn",
    "dataset.validation=0.9",
    "trainer.checkpoint_every_s=1e-9",
    "trainer.accelerator=cpu",
    "trainer.batch_size=16",
)  # 9 steps an epoch


def fit(folder: Path, *overrides: str, stop: int | None = None) -> dict[str, object]:
    """What last.pt holds after a training of `BRIEF`, killed after `stop` steps of its second epoch."""
    folder.mkdir(exist_ok=True)
    session = Session(composed(*BRIEF, *overrides), {})

    def on_step(p: Progress, steps: int) -> None:
        if (p.epoch, p.step) == (1, stop):
            raise Killed

    Fit(
        session.trainer.fabric(),
        session.network(),
        session.data,
        session.loss,
        session.optimizer,
        session.scheduler,
        session.trainer,
        seed=0,
        folder=folder,
        on_step=on_step,
        on_epoch=lambda _: None,
    ).run()
    return load_checkpoint(folder / "last.pt")


@pytest.mark.parametrize("compiled", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_in_an_epoch_sees_the_same_augmented_images(compiled: str, tmp_path: Path) -> None:
    setting = f"trainer.compile={compiled}"
    straight = fit(tmp_path / "straight", setting)
    with pytest.raises(Killed):
        fit(tmp_path / "stopped", setting, stop=4)
    resumed = fit(tmp_path / "stopped", setting)
    assert straight["history"] == resumed["history"]
    assert all(torch.equal(v, resumed["model"][k]) for k, v in straight["model"].items())


@pytest.mark.slow
def test_a_compiled_network_trains_and_validates_as_the_network_it_is_of(tmp_path: Path) -> None:
    plain, compiled = (fit(tmp_path / on, f"trainer.compile={on}") for on in ("false", "true"))
    assert list(compiled["model"]) == list(plain["model"]), "no prefix of the wrapper may be in the keys"
    for key, value in plain["model"].items():
        torch.testing.assert_close(compiled["model"][key], value, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(compiled["history"], plain["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    net = Session(composed(*BRIEF), {}).network()
    net.load_state_dict(load_checkpoint(tmp_path / "true" / "best.pt")["model"])
    best = compiled["history"][compiled["best_epoch"]]
    data, loss = digits(validation=0.9), torch.nn.functional.cross_entropy
    again = validate(net, data.val, lambda outputs, y: loss(outputs.mean(0), y), 256, torch.device("cpu"))
    assert again == pytest.approx({k: best[k] for k in again}, rel=1e-3), "what is kept is what was validated"


def test_compiling_wants_a_compiler(monkeypatch: pytest.MonkeyPatch, snnexp: Callable[..., Done]) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = snnexp(*QUICK, "trainer.compile=true", "trainer.accelerator=cpu")
    assert done.code == 1
    assert "trainer.compile=True is not allowed" in done.err
    assert "no-such-compiler" in done.err


@dataclass(frozen=True)
class Noted(Augment):
    """Keeps what it is given and what it gives, in a file a call: ranks are processes of their own."""

    folder: str = ""

    def __call__(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        out = super().__call__(x, seed)
        if not list(Path(self.folder).glob(f"{os.getpid()}-*.pt")):
            atexit.register(_note_threads, Path(self.folder) / f"{os.getpid()}.threads")
        torch.save((x, out), Path(self.folder) / f"{os.getpid()}-{seed}.pt")
        return out


def _note_threads(file: Path) -> None:
    file.write_text("\n".join(names.read_text().strip() for names in Path("/proc/self/task").glob("*/comm")))


@pytest.mark.slow
def test_two_ranks_share_the_rows_and_augment_each_its_own(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    """Each call of each rank is what (seed, epoch, step, rank) says, no row is seen twice, and the run repeats.

    No thread of the process group is left when a rank's Python ends: one that then frees a tensor aborts the process.
    """
    kept = []
    for name in ("first", "second"):
        (seen := tmp_path / name).mkdir()
        done = snnexp(
            *QUICK,
            "trainer.devices=2",
            "trainer.accelerator=cpu",
            f"outputs_dir={tmp_path / name}-outputs",
            "dataset.augment._target_=test_images.Noted",
            "dataset.augment.crop=1",
            f"+dataset.augment.folder={seen}",
        )
        assert done.code == 0, done.err
        (last,) = (tmp_path / f"{name}-outputs").glob("runs/*/*/last.pt")
        kept.append(load_checkpoint(last)["model"])
    assert all(torch.equal(v, kept[1][k]) for k, v in kept[0].items())

    train, batch, calls, processes = digits().train, 64, 0, set()
    half = len(train) // 2
    for epoch in range(2):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(mix(0, epoch)))
        for rank, shares in enumerate(order[: 2 * half].view(half, 2).T):
            for step, rows in enumerate(shares.split(batch)):
                seed = mix(0, epoch, step, rank)
                (file,) = (tmp_path / "first").glob(f"*-{seed}.pt")
                x, out = torch.load(file)
                assert torch.equal(x, train.x[train.index[rows]])
                assert torch.equal(out, Augment(crop=1)(x, seed))
                calls += 1
                processes.add(file.name.split("-")[0])
    assert len(list((tmp_path / "first").glob("*.pt"))) == calls
    assert len(processes) == 2
    threads = [file.read_text().split() for file in (tmp_path / "first").glob("*.threads")]
    assert len(threads) == 2
    assert not any("gloo" in name for names in threads for name in names), threads


@pytest.mark.parametrize(
    "setting", ["trainer.channels_last=true", "trainer.data_on_device=true", "trainer.precision=bf16-mixed"]
)
def test_options_for_speed_train_as_well(snnexp: Callable[..., Done], setting: str) -> None:
    done = snnexp(*QUICK, setting)
    assert done.code == 0, done.err
    assert done.result()["test/accuracy"] > 0.6


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["dataset=cifar10"], ["no data_batch_1", "no-data/cifar10", "dataset.download=true"]),
        (["dataset=image_folder"], ["no images in", "no-data/image_folder/train"]),
        (["dataset=digits", "dataset.augment.crop=-1"], ["dataset.augment.crop=-1", ">= 0"]),
        (["dataset=digits", "dataset.augment.policy=mnist"], ["dataset.augment.policy=mnist", "cifar10"]),
        (["dataset=digits", "model=vgg16"], ["model.shape", "32 x 32"]),
        (["model=custom"], ["model._target_ has no value"]),
        (["dataset=digits", "model=custom", "model._target_=nowhere.build"], ["model (nowhere.build)", "nowhere"]),
        (["dataset=digits", "dataset.augment.zoom=[0.5,2]"], ["dataset.augment.zoom=[0.5, 2]", "shares of the area"]),
        (["dataset=digits", "model=custom", "model._target_=os.getcwd"], ["model (os.getcwd)", "a str"]),
        (
            ["dataset=digits", "model=custom", "model._target_=torch.nn.Flatten"],
            ["torch.nn.Flatten", "10 classes", "(1, 64)"],
        ),
        (
            [
                "dataset=digits",
                "model=custom",
                "model._target_=torch.nn.Linear",
                "+model.in_features=3",
                "+model.out_features=10",
            ],
            ["cannot take digits's input (1, 8, 8)"],
        ),
        (["neuron=qcfs", "neuron.L=0"], ["neuron.L=0", ">= 1"]),
        (["neuron=clip", "neuron.bound=0"], ["neuron.bound=0"]),
        (["trainer.compile=true", "trainer.devices=2", "trainer.accelerator=cpu"], ["trainer.compile=True", "several"]),
        (["trainer.compile=1"], ["trainer.compile=1", "true or false"]),
        (["trainer.channels_last=1"], ["trainer.channels_last=1", "true or false"]),
        (["checkpoint=/nowhere.pt"], ["checkpoint=/nowhere.pt", "no such file"]),
    ],
    ids=lambda a: " ".join(a),
)
def test_wrong_values_are_refused_by_name(snnexp: Callable[..., Done], arguments: list[str], named: list[str]) -> None:
    done = snnexp(*arguments, "tracking=none")
    assert done.code == 1
    for words in named:
        assert words in done.err
    assert "Traceback" not in done.err
    assert not done.runs(), "nothing may have been begun"


@pytest.mark.parametrize("path", sorted((ROOT / "conf/experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_says_what_to_expect_and_can_be_made(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    assert header[0] == "# @package _global_"
    assert header[2].startswith(f"# snnexp experiment={path.stem}")
    assert any(line.startswith("# Expected: ") and "+-" in line for line in header)
    assert any(line.startswith("# Time: ") for line in header)
    session = Session(composed(f"experiment={path.stem}", "tracking=none"), {})
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    split = Split(images, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    session.data = (
        digits()
        if "digits" in path.stem
        else Data("like cifar10", split, split, split, shape=(3, 32, 32), classes=tuple("0123456789"), temporal=False)
    )
    session.check()
    net = session.network()
    spiking = path.stem.startswith("nmnist") or "dspike" in path.stem
    assert bool(net.sites()) == spiking
    assert (session.config["timesteps"] if spiking else 1) == net.T


def test_every_image_dataset_takes_the_same_keys() -> None:
    keys = [
        set(OmegaConf.load(ROOT / f"conf/dataset/{name}.yaml"))
        for name in ("mnist", "fashion_mnist", "cifar10", "cifar100")
    ]
    assert all(k == keys[0] for k in keys)

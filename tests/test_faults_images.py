"""Hostile and broken images, MNIST and CIFAR files: faithful pixels, or one sentence that names the file."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from torchvision import datasets

from faults.readers import images as each_format
from faults.readers import png_checksums
from snnexp.dataset import images as stored
from snnexp.dataset import standard
from snnexp.dataset.image_folder import PIXELS, SCANS, decode, image_folder
from snnexp.dataset.saccade import mnist_saccade, read_idx
from snnexp.errors import UserError
from test_faults_files import PLACED
from test_images import fake_cifar

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257  # 0..65535


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, a and b, of three images each, for training and for test."""
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(3):
                Image.new("RGB", (16, 16), (k, 10, 20)).save(tmp_path / part / name / f"{k}.png")
    return tmp_path


def load(root: Path, **options: object):
    return image_folder(root, **{"size": 16, "cache": root / "cache"} | options)


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    picture.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def pixels(data: bytes, mode: str = "L", side: tuple[int, int] | None = None) -> np.ndarray:
    return decode(io.BytesIO(data), "x.png", side, mode)


def progressive(scans: int) -> bytes:
    """Return a small progressive JPEG whose last scan is repeated."""
    data = saved(Image.new("L", (16, 16), 99), "JPEG", progressive=True)
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[last:end] * (scans - data.count(b"\xff\xda")) + data[end:]


def missing_strips() -> bytes:
    """Return a TIFF that says to be a hundred times as high as its pixels."""
    data = bytearray(saved(Image.new("L", (16, 16)), "TIFF"))
    at = data.index(struct.pack("<H", 257))  # the tag of the height
    data[at + 8 : at + 12] = struct.pack("<I", 1600)
    return bytes(data)


# Pixels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I;16")], ids="-".join
)
def test_sixteen_bits_are_scaled_and_do_not_saturate(kind: str, mode: str) -> None:
    data = saved(Image.frombytes(mode, (16, 16), RAMP.astype(">u2" if mode[-1] == "B" else "<u2").tobytes()), kind)
    assert pixels(data).tolist() == [np.arange(256).reshape(16, 16).tolist()]
    assert pixels(data, "RGB").shape == (3, 16, 16)


def test_sixteen_bits_in_a_folder(root: Path) -> None:
    Image.fromarray(RAMP).save(root / "train/a/0.png")
    assert load(root, channels=1).train.x[0].flatten().tolist() == list(range(256))


@pytest.mark.parametrize(("mode", "kind"), [("F", "TIFF"), ("I", "TIFF")])
def test_values_without_a_known_range_are_refused(mode: str, kind: str, root: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 256).reshape(16, 16).astype("f4" if mode == "F" else "i4")).save(
        root / "train/a/1.tif", kind
    )
    with pytest.raises(
        UserError, match=r"train/a/1\.tif has pixels of 32 bits or floats, .* save it with 8 or 16 bits"
    ):
        load(root)


def test_transparent_pixels_are_shown_on_white() -> None:
    clear = Image.new("RGBA", (3, 1))
    for k, colour in enumerate([(0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 127)]):
        clear.putpixel((k, 0), colour)
    assert pixels(saved(clear, "PNG"))[0].tolist() == [[255, 0, 128]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 50, 60, 70])
    palette.putpixel((1, 0), 1)
    assert pixels(saved(palette, "PNG"), "RGB")[:, 0].tolist() == [[9, 50], [9, 60], [9, 70]]
    assert pixels(saved(palette, "PNG", transparency=0), "RGB")[:, 0].tolist() == [[255, 50], [255, 60], [255, 70]]
    sixteen = Image.fromarray(np.array([[0, 700, 65535]], np.uint16))
    assert pixels(saved(sixteen, "PNG", transparency=700))[0].tolist() == [[0, 255, 255]]


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "ppm", "tiff", "webp"])
def test_every_format_and_mode_that_is_meant_is_read(kind: str) -> None:
    for data in each_format()[kind]:
        assert pixels(data, "RGB").shape == (3, 9, 13)
        assert pixels(data, "RGB", (5, 5)).shape == (3, 5, 5)


@pytest.mark.parametrize("shape", [(1, 65_000), (65_000, 1), (3, 20_000)])
def test_extreme_shapes_are_cut_before_they_are_scaled(shape: tuple[int, int]) -> None:
    picture = np.zeros((*shape, 3), np.uint8)
    middle = tuple(slice((n - 3) // 2, (n + 4) // 2) for n in shape)
    picture[middle] = (10, 200, 30)
    start = time.process_time()
    cut = pixels(saved(Image.fromarray(picture), "PNG"), "RGB", (224, 224))
    assert time.process_time() - start < 1
    assert cut[:, 112, 112].tolist() == [10, 200, 30]


def test_a_cut_is_that_of_the_whole_scaled_image() -> None:
    """Scale, then cut: what torchvision does, and what was done before the cut came first."""
    draw = np.random.default_rng(0)
    for width, height in ((40, 33), (33, 40), (90, 20), (17, 19)):
        picture = Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))
        scale = 16 / min(width, height)
        whole = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        left, top = (whole.width - 16) // 2, (whole.height - 16) // 2
        expected = np.asarray(whole.crop((left, top, left + 16, top + 16))).transpose(2, 0, 1).astype(int)
        assert abs(pixels(saved(picture, "PNG"), "RGB", (16, 16)) - expected).max() <= 1


def test_large_images_are_decoded_few_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "CHUNK_BYTES", 2 * 16 * 16 * 3)
    sizes: list[int] = []
    plain = stored.Sums.add
    monkeypatch.setattr(stored.Sums, "add", lambda self, x: (sizes.append(len(x)), plain(self, x))[1])
    assert len(load(root).train.y) == 12
    assert sizes == [2, 2, 2]


# Files ----------------------------------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
PNG = saved(Image.effect_noise((16, 16), 90), "PNG")
FORMATS = "it is none of JPEG, PNG, BMP, PPM, TIFF, WEBP"
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "cannot be read as an image (it is empty)"),
    "text": (lambda: b"no image", f"cannot be read as an image ({FORMATS})"),
    "eps": (lambda: EPS, f"cannot be read as an image ({FORMATS})"),
    "gif": (lambda: saved(Image.new("L", (16, 16)), "GIF"), f"cannot be read as an image ({FORMATS})"),
    "a cut png": (lambda: PNG[:-60], "cannot be read as an image ("),
    "a cut jpeg": (
        lambda: saved(Image.effect_noise((64, 64), 90), "JPEG")[:-300],
        "cannot be read as an image (image file",
    ),
    "a bomb": (lambda: saved(Image.new("1", (8193, 8192)), "PNG"), f"has 8,192 x 8,193 pixels, more than {PIXELS:,}"),
    "a larger bomb": (
        lambda: png_checksums(PNG[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + PNG[24:]),
        "cannot be read as an image (Image size",
    ),
    "many scans": (lambda: progressive(SCANS + 1), f"is a JPEG of {SCANS + 1} scans, more than {SCANS}"),
    "missing strips": (missing_strips, "cannot be read as an image (parts of it are missing)"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_images_are_named(kind: str, root: Path) -> None:
    data, said = BROKEN[kind]
    path = root / "train/a/7.png"
    path.write_bytes(data())
    start = time.process_time()
    with pytest.raises(UserError) as error:
        load(root)
    assert str(error.value).startswith(f"{path} {said}")
    assert time.process_time() - start < 2
    assert not list((root / "cache").rglob("images*.npy"))


def test_no_other_program_is_started_for_an_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "bin").mkdir()
    (root / "bin/gs").write_text(f"#!/bin/sh\ntouch {root}/started\n")
    (root / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    (root / "train/a/7.png").write_bytes(EPS)
    with pytest.raises(UserError, match="it is none of JPEG, PNG"):
        load(root)
    assert not (root / "started").exists()


def test_webp_can_be_read_here() -> None:
    assert features.check("webp"), "else its files would be refused as of no known format"


@pytest.mark.parametrize("kind", [kind for kind in PLACED if kind not in ("10 GiB", "nothing")])
def test_what_is_named_like_an_image_but_is_none(kind: str, root: Path) -> None:
    place, said = PLACED[kind]
    path = root / "train/a/7.png"
    place(path)
    with pytest.raises(UserError) as error:
        load(root)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)


# Folders --------------------------------------------------------------------------------------------------------------


def test_hidden_folders_are_no_classes_and_hidden_files_no_images(root: Path) -> None:
    for folder in ("train/.ipynb_checkpoints", "train/a/.ipynb_checkpoints", ".git"):
        (root / folder).mkdir()
        Image.new("RGB", (16, 16)).save(root / folder / "0-checkpoint.png")
    (root / "train/a/._0.png").write_bytes(b"of a file manager")
    data = load(root)
    assert data.classes == ("a", "b")
    assert len(data.train.y) == 12


def test_images_in_folders_of_a_class_folder_belong_to_the_class(root: Path) -> None:
    deep = root / "train/b/images/2024"
    deep.mkdir(parents=True)
    Image.new("RGB", (16, 16), "white").save(deep / "0.png")
    data = load(root)
    assert data.classes == ("a", "b")
    assert data.train.y[:7].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert data.train.x[6].min() == 255


def test_links_to_folders(root: Path) -> None:
    (root / "train/c").symlink_to(root / "train/a")
    assert load(root).classes == ("a", "b", "c")
    (root / "train/a/above").symlink_to(root / "train")
    with pytest.raises(UserError, match=r"train/a/above is a link to a folder, which only a class folder can be"):
        load(root)
    (root / "train/a/above").unlink()
    (root / "train/d").symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"train/d, or what it links to, cannot be read \(No such file or directory\)"):
        load(root)


def test_an_empty_class_folder_is_named_even_if_folders_are_in_it(root: Path) -> None:
    (root / "train/c/images").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no images in the class folder .*train/c: fill it or remove it"):
        load(root)


# MNIST ----------------------------------------------------------------------------------------------------------------


def idx(shape: tuple[int, ...], data: bytes, kind: int = 8) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, kind, len(shape), *shape) + data


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx((4, 28, 28), bytes(4 * 784)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx((4,), bytes(range(4))))
    return tmp_path


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
WRONG: dict[str, tuple[str, bytes, str]] = {
    "fewer": (IMAGES, idx((4, 28, 28), bytes(783)), r"is damaged .*its header states 3,136 bytes, but it has 783"),
    "more": (IMAGES, idx((4, 28, 28), bytes(9000)), r"is damaged .*its header states 3,136 bytes, but it has more"),
    "huge": (
        IMAGES,
        idx((2**32 - 1, 2**32 - 1, 2**32 - 1), b""),
        r"its header states 79,228,162,458,924,105,385,300,197,375 bytes, more than the 268,435,456 that are read",
    ),
    "floats": (IMAGES, idx((4, 28, 28), bytes(4 * 784 * 4), 13), r"it does not start like a file of unsigned bytes"),
    "axes": (IMAGES, idx((4, 28, 28, 1), bytes(4 * 784)), r"it does not start like a file of unsigned bytes in one or"),
    "header": (IMAGES, idx((4, 28, 28), b"")[:9], r"train-images-idx3-ubyte is damaged or not an MNIST file"),
    "empty": (IMAGES, b"", r"it does not start like a file of unsigned bytes"),
    "size": (IMAGES, idx((4, 20, 28), bytes(4 * 560)), r"holds an array of shape \(4, 20, 28\), not images of 28 x 28"),
    "none": (IMAGES, idx((0, 28, 28), b""), r"holds an array of shape \(0, 28, 28\), not images of 28 x 28"),
    "labels": (LABELS, idx((3,), bytes(3)), r"holds an array of shape \(3,\), not a label for each of 4 images"),
    "exchanged": (LABELS, idx((4, 28, 28), bytes(4 * 784)), r"not a label for each of 4 images"),
    "class": (LABELS, idx((4,), bytes([0, 1, 2, 10])), r"holds the label 10: there are 10 classes, from 0 on"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_false_mnist_files_are_named(kind: str, mnist: Path) -> None:
    name, data, said = WRONG[kind]
    (mnist / "MNIST/raw" / name).write_bytes(data)
    for read in (
        lambda: standard.mnist(mnist, cache=mnist / "cache"),
        lambda: mnist_saccade(mnist, mnist / "cache", 2),
    ):
        with pytest.raises(UserError, match=said) as error:
            read()
        assert str(error.value).startswith(str(mnist / "MNIST/raw" / name))


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a device", "10 GiB"])
def test_what_is_named_like_an_mnist_file_but_is_none(kind: str, mnist: Path) -> None:
    path = mnist / "MNIST/raw" / IMAGES
    path.unlink()
    PLACED[kind][0](path)
    with pytest.raises(UserError) as error:
        standard.mnist(mnist, cache=mnist / "cache")
    assert str(error.value).startswith(str(path))


def test_a_damaged_checksum_of_a_gzipped_file_is_noticed(mnist: Path) -> None:
    import gzip

    path = mnist / "a.gz"
    data = bytearray(gzip.compress(idx((4,), bytes(4))))
    path.write_bytes(data)
    assert read_idx(path).tolist() == [0, 0, 0, 0]
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.gz is damaged or not an MNIST file \(CRC check failed"):
        read_idx(path)


# CIFAR ----------------------------------------------------------------------------------------------------------------


def test_pickles_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    fake_cifar(tmp_path, datasets.CIFAR10, monkeypatch)
    folder = tmp_path / datasets.CIFAR10.base_folder
    assert len(standard.cifar10(tmp_path, cache=tmp_path / "cache").train.y) == 120
    for name in ("data_batch_3", "test_batch", "batches.meta"):
        plain = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps({"data": Evil(), "labels": Evil(), "label_names": Evil()}))
        with pytest.raises(UserError, match=r"cifar-10-batches-py does not hold the published files"):
            standard.cifar10(tmp_path, cache=tmp_path / "cache")
        assert not (tmp_path / "ran").exists()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=f"{name} is a named pipe, not a file"):
            standard.cifar10(tmp_path, cache=tmp_path / "cache")
        (folder / name).unlink()
        (folder / name).write_bytes(plain)
    assert torch.equal(*(standard.cifar10(tmp_path, cache=tmp_path / c).test.x for c in ("cache", "other")))

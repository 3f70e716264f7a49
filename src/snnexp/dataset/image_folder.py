"""Images in class folders, `train/<class>/` and `test/<class>/`; also ImageNet's layout."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from snnexp.dataset.base import Data
from snnexp.dataset.images import Bytes, ImageOptions, Part, files, load_images
from snnexp.errors import UserError, integer, integer_or_none, require

MODES = {1: "L", 3: "RGB"}


def image_folder(
    root: str | Path,
    size: int | None = None,
    resize: int | None = None,
    channels: int = 3,
    name: str = "image_folder",
    train: str = "train",
    test: str = "test",
    **options: Any,
) -> Data:
    """Load the images below `root/<train>/<class>/` and `root/<test>/<class>/`, in the formats that torchvision lists.

    Each becomes `channels` (3 colour, 1 grey) x `size` x `size` pixels. It is scaled until its shorter side is `resize`
    (None: `size`), cut square around its centre, and stored; the middle `size` x `size` of that is shown, or with
    `augment.zoom` any part in training. `size=None` takes images as they are; all must then have one size. `train` and
    `test` name the two folders. Classes are the folders of `train`, in alphabetical order. Other arguments:
    `ImageOptions`. Raises UserError that names the folder or file at fault, InvalidValue for a wrong value.
    """
    integer_or_none("size", size, at_least=1)
    if resize is not None:
        integer("resize", resize, at_least=size or 1)
        require(size is not None, "resize", resize, "null unless size is set")
    stored = resize or size
    require(channels in MODES, "channels", channels, "3 (colour) or 1 (grey)")
    root = Path(root).expanduser().absolute()
    found = [_listed(root / part) for part in (train, test)]
    classes = sorted({path.parent.name for path in found[0]})
    for path in found[1]:
        if path.parent.name not in classes:
            raise UserError(f"{path.parent} is not a class of {root / train}, which has: {', '.join(classes[:20])}")

    def parts() -> tuple[Part, Part]:
        side = _size(found[0][0]) if stored is None else (stored, stored)
        number = {name: k for k, name in enumerate(classes)}
        labels = ([number[path.parent.name] for path in paths] for paths in found)
        reads = (partial(_read, paths, side, MODES[channels], stored is None) for paths in found)
        train, test = map(Part, labels, reads)
        return train, test

    identity = [stored, channels, *(files(paths) for paths in found)]
    return load_images(name, parts, identity, classes, ImageOptions(**options), size)


def _listed(folder: Path) -> list[Path]:
    """List all images in the class folders of `folder`, by class and name."""
    paths = sorted(p for p in folder.glob("*/*") if p.suffix.lower() in IMG_EXTENSIONS)
    filled = {p.parent for p in paths}
    if not paths:
        kinds = f"{folder.name}/<class>/<image> ({', '.join(IMG_EXTENSIONS)})"
        raise UserError(f"no images in {folder}: looked for {kinds}; point dataset.root at the folder above")
    if empty := sorted(p for p in folder.iterdir() if p.is_dir() and p not in filled):
        raise UserError(f"no images in the class folder {empty[0]}: fill it or remove it")
    return paths


def _size(path: Path) -> tuple[int, int]:
    with _opened(path) as image:
        return image.height, image.width


def _read(paths: list[Path], side: tuple[int, int], mode: str, exact: bool, rows: range) -> Bytes:
    """Read images `rows` of `paths` as uint8 [n, C, H, W]."""
    out = np.empty((len(rows), Image.getmodebands(mode), *side), np.uint8)
    for k, row in enumerate(rows):
        with _opened(paths[row]) as image:
            if exact and (image.height, image.width) != side:
                first = f"the first image {side[0]} x {side[1]}: set dataset.size to bring all to one size"
                raise UserError(f"{paths[row]} has {image.height} x {image.width} pixels, {first}")
            try:
                pixels = _cut(image.convert(mode), side)
            except Exception as error:  # Pillow raises many kinds
                raise UserError(f"{paths[row]} is damaged: {error}") from error
        out[k] = np.asarray(pixels).reshape(*side, -1).transpose(2, 0, 1)
    return out


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Exception as error:  # Pillow raises many kinds
        raise UserError(f"{path} cannot be read as an image: {error}") from error


def _cut(image: Image.Image, side: tuple[int, int]) -> Image.Image:
    """Scale the image so that it covers `side` (height, width), and cut it around its centre."""
    height, width = side
    if (image.height, image.width) == side:
        return image
    scale = max(height / image.height, width / image.width)
    wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (wide - width) // 2, (high - height) // 2
    scaled = image.resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return scaled.crop((left, top, left + width, top + height))

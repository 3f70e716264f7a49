"""Images in class folders, `train/<class>/` and `test/<class>/`; also ImageNet's layout."""

import mimetypes
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from snnexp.dataset.base import Data
from snnexp.dataset.foreign import is_folder, listed, opened, refused, shown
from snnexp.dataset.images import Bytes, ImageOptions, Part, files, load_images
from snnexp.dataset.pixels import eight_bits
from snnexp.errors import UserError, integer, integer_or_none, require

MODES = {1: "L", 3: "RGB"}
VERSION = 3  # increase when the same files give other pixels, so that images are prepared again
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")  # Pillow reads some others with other programs
# 8192 x 8192, twice what a camera's 24 to 36 million are. Decoding takes up to 16 bytes a pixel on each core: 1 GiB.
PIXELS = 1 << 26
FILE_BYTES = 4 * PIXELS  # what these take uncompressed
SCANS = 100  # of a progressive JPEG, which usually has ten; each takes as long as the image, whatever its bytes


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
    """Load the images below `root/<train>/<class>/` and `root/<test>/<class>/`, in the formats in FORMATS.

    Folders in class folders are read too. Hidden files and folders are not. Pixels become what a viewer shows
    (`snnexp.dataset.pixels`).

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
    classes = list(found[0])
    for label in found[1]:
        if label not in classes:
            known = f"which has: {', '.join(map(shown, classes[:20]))}"
            raise UserError(f"{shown(root / test / label)} is not a class of {root / train}, {known}")
    images = [[path for paths in part.values() for path in paths] for part in found]

    def parts() -> tuple[Part, Part]:
        side = None if stored is None else (stored, stored)
        if side is None:
            with opened(images[0][0], FILE_BYTES) as file:
                side = decode(file, str(images[0][0]), None, MODES[channels]).shape[1:]
        number = {label: k for k, label in enumerate(classes)}
        labels = [[number[label] for label, paths in part.items() for _ in paths] for part in found]
        made = [
            Part(numbers, partial(_read, paths, side, MODES[channels], stored is None))
            for numbers, paths in zip(labels, images, strict=True)
        ]
        return made[0], made[1]

    identity = [VERSION, stored, channels, *(files(paths, FILE_BYTES) for paths in images)]
    return load_images(name, parts, identity, classes, ImageOptions(**options), size)


def decode(file: BinaryIO, name: str, side: tuple[int, int] | None, mode: str, exact: bool = False) -> Bytes:
    """Read an image as uint8 [C, H, W] in `mode` (a value of MODES), scaled and cut to `side` (height, width).

    `exact`: it must have that size; None: as it is. Raises UserError, which names `name`, for a file that is damaged or
    of another format, more than PIXELS pixels, and what `eight_bits` refuses.
    """
    with refused(f"{shown(name)} cannot be read as an image"), _identified(file) as image:
        if image.width * image.height > PIXELS:
            raise UserError(f"{shown(name)} has {image.height:,} x {image.width:,} pixels, more than {PIXELS:,}")
        if not _covered(image):
            raise ValueError("parts of it are missing")
        if image.info.get("progressive") and (scans := _scans(file)) > SCANS:
            raise UserError(f"{shown(name)} is a JPEG of {scans:,} scans, more than {SCANS}")
        picture = eight_bits(image, name).convert(mode)
        if exact and side and (picture.height, picture.width) != side:
            raise UserError(
                f"{shown(name)} has {picture.height} x {picture.width} pixels, the first image "
                f"{side[0]} x {side[1]}: set dataset.size to bring all to one size"
            )
        pixels = np.asarray(_cut(picture, side or (picture.height, picture.width)))
        return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


def _listed(folder: Path) -> dict[str, list[Path]]:
    """Return the images in the class folders of `folder`, by class; all sorted by name."""
    found = {}
    for name in listed(folder):
        if is_folder(folder / name):
            found[name] = sorted(_images(folder / name))
    if not any(found.values()):
        raise UserError(
            f"no images in {shown(folder)}: looked for {folder.name}/<class>/<image> "
            f"({', '.join(sorted(_extensions()))}); point dataset.root at the folder above"
        )
    for name, paths in found.items():
        if not paths:
            raise UserError(f"no images in the class folder {shown(folder / name)}: fill it or remove it")
    return found


def _images(folder: Path) -> Iterator[Path]:
    """Yield the paths below `folder` that are named like images of FORMATS.

    Raises UserError, so that no image is left out silently, for one of another format and for a folder behind a link.
    """
    folders, extensions = [folder], _extensions()
    while folders:
        inside = folders.pop()
        for path in map(inside.joinpath, listed(inside)):
            if path.suffix.lower() in extensions:
                yield path
            elif _is_picture(path):
                wanted = f"it is none of {', '.join(FORMATS)}: convert it, or move it away"
                raise UserError(f"{shown(path)} is an image that cannot be read: {wanted}")
            elif is_folder(path):
                if path.is_symlink():  # it may lead back to a folder above
                    raise UserError(f"{shown(path)} is a link to a folder, which only a class folder can be")
                folders.append(path)


def _extensions() -> set[str]:
    """Return the extensions of files that are read."""
    return {extension for extension, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}


def _is_picture(path: Path) -> bool:
    """Return whether a file is named like an image of any format."""
    known = Image.MIME.get(Image.registered_extensions().get(path.suffix.lower(), ""))
    return str(known or mimetypes.guess_type(path.name)[0]).startswith("image/") and path.is_file()


def _read(paths: list[Path], side: tuple[int, int], mode: str, exact: bool, rows: range) -> Bytes:
    """Read images `rows` of `paths` as uint8 [n, C, H, W]."""
    out = np.empty((len(rows), Image.getmodebands(mode), *side), np.uint8)
    for k, row in enumerate(rows):
        with opened(paths[row], FILE_BYTES) as file:
            out[k] = decode(file, str(paths[row]), side, mode, exact)
    return out


def _identified(file: BinaryIO) -> ImageFile.ImageFile:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        if not (start := file.read(16)):
            raise ValueError("it is empty") from error
        kind = next((name for name in FORMATS if (accept := Image.OPEN[name][1]) and accept(start) is True), None)
        unknown = f"it is none of {', '.join(FORMATS)}"
        odd = f"it is damaged, or a {kind} of an unusual kind: save it with 8 or 16 bits per channel"
        raise ValueError(odd if kind else unknown) from error


def _covered(image: ImageFile.ImageFile) -> bool:
    """Return whether there are data for all pixels of an opened image: Pillow takes missing strips for black."""
    boxes = [tile.extents or (0, 0, *image.size) for tile in image.tile]
    area = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    return not boxes or area >= image.width * image.height


def _scans(file: BinaryIO) -> int:
    """Return the number of scans in a JPEG, and in its thumbnails."""
    file.seek(0)
    return file.read().count(b"\xff\xda")


def _cut(image: Image.Image, side: tuple[int, int]) -> Image.Image:
    """Scale the image so that it covers `side` (height, width), and cut it around its centre."""
    height, width = side
    if (image.height, image.width) == side:
        return image
    scale = max(height / image.height, width / image.width)
    wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (wide - width) // 2, (high - height) // 2
    # only the part that is kept is scaled: a long image would become as many times as long
    across = (left * image.width / wide, (left + width) * image.width / wide)
    down = (top * image.height / high, (top + height) * image.height / high)
    box = (across[0], down[0], across[1], down[1])
    return image.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=3.0)

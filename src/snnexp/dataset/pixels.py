"""Turn an opened image of any kind into 8 bits per channel as a viewer shows them, or refuse it by name."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin
from PIL.ExifTags import Base

from snnexp.dataset.foreign import shown
from snnexp.errors import UserError

SUBFILE = 254  # the TIFF tag that says what a page is
SMALLER, MASK = 1, 4  # its bits for a page that repeats another one in less detail, and for a mask
WHITE_IS_ZERO = 0  # a value of the tag PhotometricInterpretation
SIGNED = 2  # a value of the tag SampleFormat


def eight_bits(image: ImageFile.ImageFile, name: str) -> Image.Image:
    """Return the only picture in a file with 8 bits per channel, upright, and on white where it is transparent.

    Raises UserError, naming `name`, for several pictures (animations, pages), and for signed, 32-bit and float values.
    """
    if _several(image):
        raise UserError(f"{shown(name)} holds several pictures (an animation or pages): save each in a file of its own")
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = int(np.max(tags.get(Base.BitsPerSample, 16)))
    inverted = tags.get(Base.PhotometricInterpretation) == WHITE_IS_ZERO
    sixteen = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
    if SIGNED in np.atleast_1d(tags.get(Base.SampleFormat, 1)) or (image.mode in ("I", "F") and not sixteen):
        kind = "32 bits or floats, or signed ones, whose range is not known"
        raise UserError(f"{shown(name)} has pixels of {kind}: save it with 8 or 16 bits")
    upright = _upright(image)
    if sixteen:
        return _scaled(upright, (1 << bits) - 1, inverted)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright


def _several(image: ImageFile.ImageFile) -> bool:
    """Return whether a file has a second picture of its own: no preview, mask, or view of a stereo camera (MPO)."""
    if not getattr(image, "is_animated", False) or image.format == "MPO":
        return False
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return True
    image.seek(1)
    kind = int(image.tag_v2.get(SUBFILE, 0))
    image.seek(0)
    return not kind & (SMALLER | MASK)


def _upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF data say; as it is stored if it has none that can be read."""
    with suppress(Exception):  # Pillow raises many kinds for damaged EXIF data
        if image.getexif().get(Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def _scaled(image: Image.Image, largest: int, inverted: bool) -> Image.Image:
    """Scale 0..`largest` (at most 65,535) to 0..255, or if `inverted` to 255..0; a transparent value becomes white."""
    values = np.minimum(np.arange(1 << 16), largest)
    table = ((values * 255 + largest // 2) // largest).astype(np.uint8)
    if inverted:
        table = 255 - table
    if (hidden := image.info.get("transparency")) is not None:
        table[hidden] = 255
    return Image.fromarray(table[np.asarray(image).astype(np.uint16)])

"""Images of every kind that people have show the values that a viewer shows, or are refused by name."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from snnexp.dataset.image_folder import decode, image_folder
from snnexp.errors import UserError

RAMP = np.arange(6, dtype=np.uint8)[None] * 51
GREY = Image.fromarray(RAMP)
COLOUR = Image.merge("RGB", (GREY, ImageOps.invert(GREY), GREY))
SIXTEEN = (np.arange(6) * 13107).astype("<u2")
TAGS = {"width": 256, "height": 257, "bits": 258, "photometric": 262, "samples": 277, "kind": 339}


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    picture.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def shown(data: bytes, mode: str = "L") -> list[list[int]]:
    """The pixels of each channel, row by row."""
    return [channel.flatten().tolist() for channel in decode(io.BytesIO(data), "x.tif", None, mode)]


def tiff(raw: bytes, bits: int, kind: int = 1, photometric: int = 1) -> bytes:
    """A TIFF of one row and one channel, uncompressed; kind 1: unsigned, 2: signed, 3: floats."""
    values = {"width": 6, "height": 1, "bits": bits, "photometric": photometric, "samples": 1, "kind": kind}
    tags = {TAGS[name]: value for name, value in values.items()} | {259: 1, 273: 8, 278: 1, 279: len(raw)}
    entries = [struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in sorted(tags)]
    raw += bytes(len(raw) % 2)
    header = b"II*\0" + struct.pack("<I", 8 + len(raw))
    return header + raw + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)


PLAIN = [0, 51, 102, 153, 204, 255]
READ = {
    "one bit": (saved(GREY.convert("1", dither=Image.Dither.NONE), "PNG"), [0, 0, 0, 255, 255, 255]),
    "grey and alpha": (saved(Image.merge("LA", (GREY, ImageOps.invert(GREY))), "PNG"), [0, 92, 163, 214, 245, 255]),
    "sixteen bits": (tiff(SIXTEEN.tobytes(), 16), PLAIN),
    "white is zero, 8 bits": (tiff(RAMP.tobytes(), 8, photometric=0), PLAIN[::-1]),
    "white is zero, 16 bits": (tiff(SIXTEEN.tobytes(), 16, photometric=0), PLAIN[::-1]),
    "twelve bits": (tiff(bytes([0x00, 0x03, 0x33, 0x66, 0x69, 0x99, 0xCC, 0xCF, 0xFF]), 12), PLAIN),
    "PGM up to 1000": (b"P5 6 1 1000\n" + (np.arange(6) * 200).astype(">u2").tobytes(), PLAIN),
}


@pytest.mark.parametrize("kind", READ)
def test_values_are_scaled_by_the_range_of_the_format(kind: str) -> None:
    data, wanted = READ[kind]
    assert np.allclose(shown(data), [wanted], atol=1)


def test_colours_of_print_and_palettes() -> None:
    plain = shown(saved(COLOUR, "PNG"), "RGB")
    assert shown(saved(COLOUR.convert("CMYK"), "TIFF"), "RGB") == plain
    assert np.allclose(shown(saved(COLOUR.convert("CMYK"), "JPEG", quality=100), "RGB"), plain, atol=2)
    hidden = shown(saved(COLOUR.quantize(6), "PNG", transparency=bytes([0] + [255] * 5)), "RGB")
    assert [k for k in range(6) if [c[k] for c in hidden] != [c[k] for c in plain]] == [
        k for k in range(6) if [c[k] for c in hidden] == [255, 255, 255]
    ]


REFUSED = {
    "signed 8 bits": (tiff(np.arange(-3, 3, dtype=np.int8).tobytes(), 8, 2), "has pixels of 32 bits or floats, or sig"),
    "signed 16 bits": (tiff(np.arange(-3, 3, dtype="<i2").tobytes(), 16, 2), "has pixels of 32 bits or floats, or sig"),
    "32 bits": (tiff(np.arange(6, dtype="<u4").tobytes(), 32), "whose range is not known: save it with 8 or 16 bits"),
    "floats": (tiff(np.ones(6, "<f4").tobytes(), 32, 3), "whose range is not known: save it with 8 or 16 bits"),
    "half floats": (tiff(np.ones(6, "<f2").tobytes(), 16, 3), "a TIFF of an unusual kind: save it with 8 or 16 bits"),
    "pages": (saved(GREY, "TIFF", save_all=True, append_images=[GREY]), "x.tif holds several pictures (an animation o"),
    "an animated PNG": (saved(GREY, "PNG", save_all=True, append_images=[COLOUR]), "holds several pictures"),
    "an animated WebP": (saved(GREY, "WEBP", save_all=True, append_images=[COLOUR]), "holds several pictures"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_shown_faithfully_is_refused(kind: str) -> None:
    data, said = REFUSED[kind]
    with pytest.raises(UserError) as error:
        shown(data)
    assert str(error.value).startswith("x.tif ")
    assert said in str(error.value)


def test_second_pictures_that_are_no_pictures_of_their_own() -> None:
    preview = GREY.resize((3, 1))
    preview.encoderinfo = {"tiffinfo": {254: 1}}  # less detail of another page
    assert shown(saved(GREY, "TIFF", save_all=True, append_images=[preview])) == [PLAIN]
    stereo = saved(COLOUR, "MPO", save_all=True, append_images=[COLOUR])
    assert shown(stereo, "RGB") == shown(saved(COLOUR, "JPEG"), "RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_photos_are_upright(kind: str) -> None:
    """The camera was held sideways: stored are 32 x 16 pixels, black above white, which a viewer turns."""
    stored = Image.fromarray(np.repeat(np.repeat(np.array([[0], [255]], np.uint8), 16, 0), 16, 1))
    data = Image.Exif()
    data[0x0112] = 6  # turn by 90 degrees, clockwise
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(io.BytesIO(saved(stored, kind, exif=data.tobytes(), **options)), "x", None, "L")
    assert pixels.shape == (1, 16, 32)
    assert (pixels[0, :, 2].mean(), pixels[0, :, 29].mean()) == (255, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_are_ignored() -> None:
    data = saved(COLOUR, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    assert shown(data, "RGB") == shown(saved(COLOUR, "PNG"), "RGB")


def test_no_image_is_left_out_silently(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            GREY.save(tmp_path / part / name / "0.jfif", "JPEG")
            (tmp_path / part / name / "Thumbs.db").write_bytes(b"of a file manager")
    data = image_folder(tmp_path, size=1, cache=tmp_path / "cache", validation=0.5)
    assert data.train.y.tolist() == [0, 1, 0, 1]  # with test's
    for name in ("phone.heic", "moving.gif", "flat.JP2", "drawing.svg"):
        (tmp_path / "train/a" / name).write_bytes(b"anything")
        with pytest.raises(UserError) as error:
            image_folder(tmp_path, size=1, cache=tmp_path / "cache")
        assert str(error.value) == (
            f"{tmp_path}/train/a/{name} is an image that cannot be read: it is none of JPEG, PNG, BMP, PPM, TIFF, "
            "WEBP: convert it, or move it away"
        )
        (tmp_path / "train/a" / name).unlink()

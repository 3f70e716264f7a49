"""The readers of data files for `mutate.fuzz`, with small files that they accept, and checks of what they return.

`PYTHONPATH=tests python -m faults.readers --count 1000000 nmnist zip` feeds that many mutants to each reader that is
named (default: all) and prints a row for each; its exit status is 1 if any file was handled badly.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from faults.mutate import GROWTH, Counts, fuzz
from snnexp.dataset import aedat, events, frames
from snnexp.dataset.foreign import Zip, by_number
from snnexp.dataset.image_folder import PIXELS, decode
from snnexp.dataset.recordings import MEMBER
from snnexp.dataset.saccade import decode_idx
from test_camera import DATA

NAME = "some file"


@dataclass(frozen=True)
class Reader:
    """A function of a file's bytes, files that it accepts, and what mends checksums."""

    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    name: str = NAME
    mend: Callable[[bytes], bytes] = bytes
    growth: int = GROWTH

    def fuzz(self, count: int, seed: int) -> Counts:
        return fuzz(self.read, self.seeds, count, seed, self.name, self.mend, growth=self.growth)


def readers() -> dict[str, Reader]:
    """Return all readers; real recordings are among the files if there are any."""
    recordings = [events.encode(some_events(n, 34, 2**21)) for n in (1, 7, 200)]
    real = sorted((DATA / "nmnist/Test").glob("*/*.bin"))[:3]
    made = {
        "nmnist": Reader(read_nmnist, [*recordings, *(path.read_bytes()[:5000] for path in real)]),
        "aedat": Reader(read_aedat, [aedat.encode(some_events(n, 128, 2**31)) for n in (1, 7, 200)]),
        "zip": archives(recordings),
        "idx": Reader(read_idx, idx()),
        "idx.gz": Reader(
            lambda data: read_idx(data, gzip.GzipFile(fileobj=io.BytesIO(data))), list(map(gzip.compress, idx()))
        ),
    }
    mends = {"png": png_checksums}
    return made | {
        kind: Reader(read_image, saved, mend=mends.get(kind, bytes), growth=16 * PIXELS)  # as documented there
        for kind, saved in images().items()
    }


def some_events(n: int, side: int, end: int) -> events.Events:
    draw = np.random.default_rng(n)
    return events.Events(np.sort(draw.integers(0, end, n)), *draw.integers(0, side, (2, n)), draw.integers(0, 2, n))


def read_nmnist(data: bytes) -> None:
    found = events.decode(events.not_empty(data, NAME), name=NAME)
    rows = np.frombuffer(data, np.uint8).reshape(-1, 5)[:, 1]
    check(found, int((rows != events.MARKER_ROW).sum()), 34)


def read_aedat(data: bytes) -> None:
    check(aedat.decode(data, NAME), None, 128)


def check(found: events.Events, n: int | None, side: int) -> None:
    """Assert that the events are sorted and on the sensor, and that none is lost in the frames."""
    assert n in (None, len(found.t))
    assert (np.diff(found.t) >= 0).all()
    for values, limit in ((found.x, side), (found.y, side), (found.p, 2)):
        assert not len(values) or 0 <= values.min() <= values.max() < limit
    assert frames.count([found], 2, "count", 1, side, side).sum() == len(found.t)


def archives(recordings: Sequence[bytes]) -> Reader:
    path = Path(f"/proc/self/fd/{os.memfd_create('archive')}")  # a file in memory
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(file := io.BytesIO(), "w", method) as archive:
            for k, data in enumerate(recordings):
                archive.writestr(f"Train/{k}/{k + 1:05d}.bin", data)
            archive.writestr("Train/README.txt", "recordings")
        seeds.append(file.getvalue())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        archive = Zip(path, ".bin")
        for match in by_number(archive.names, MEMBER, path):
            data = archive.read(match.string)
            assert len(data) == archive.members[match.string].file_size
            events.decode(data, name=str(path))

    return Reader(read, seeds, str(path))


def idx() -> list[bytes]:
    pixels, labels = np.arange(4 * 28 * 28, dtype=np.uint8), np.arange(4, dtype=np.uint8)
    return [
        struct.pack(">4B3I", 0, 0, 8, 3, 4, 28, 28) + pixels.tobytes(),
        struct.pack(">4BI", 0, 0, 8, 1, 4) + labels.tobytes(),
    ]


def read_idx(data: bytes, file: io.BufferedIOBase | None = None) -> None:
    found = decode_idx(file or io.BytesIO(data), NAME)
    assert found.dtype == np.uint8
    assert file or found.size + 4 * (1 + found.ndim) == len(data)


def images() -> dict[str, list[bytes]]:
    """Return small images of each format, in its modes and kinds of compression."""
    ramp = np.add.outer(np.arange(9) * 20, np.arange(13) * 5).astype(np.uint8)
    grey, wide = Image.fromarray(ramp), Image.fromarray(ramp.astype(np.uint16) * 257)
    colour = Image.merge("RGB", [grey, grey.transpose(Image.Transpose.ROTATE_180), grey])
    clear = colour.convert("RGBA")
    clear.putalpha(grey)
    palette = colour.quantize(8)

    def saved(kind: str, *pictures: tuple[Image.Image, dict[str, object]]) -> list[bytes]:
        made = []
        for picture, options in pictures:
            picture.save(file := io.BytesIO(), kind, **options)
            made.append(file.getvalue())
        return made

    return {
        "png": saved(
            "PNG", *((p, {}) for p in (grey, wide, colour, clear, grey.convert("1"))), (palette, {"transparency": 2})
        ),
        "jpeg": saved("JPEG", (grey, {}), (colour, {"progressive": True}), (colour.convert("CMYK"), {})),
        "bmp": saved("BMP", *((p, {}) for p in (grey, colour, clear, palette, grey.convert("1")))),
        "ppm": saved("PPM", *((p, {}) for p in (grey, colour, grey.convert("1"), wide))),
        "tiff": saved(
            "TIFF", *((colour, {"compression": c}) for c in ("raw", "tiff_lzw", "tiff_adobe_deflate")), (wide, {})
        ),
        "webp": saved("WEBP", (colour, {}), (clear, {"lossless": True})),
    }


def read_image(data: bytes, mode: str = "RGB") -> None:
    pixels = decode(io.BytesIO(data), NAME, (8, 8), mode)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8


def png_checksums(data: bytes) -> bytes:
    """Return a PNG with the right checksum after each chunk, so that a change of it is not found by that alone."""
    mended, at = bytearray(data), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4], "big")
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = zlib.crc32(mended[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(mended)


def main() -> int:
    known = readers()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--count", type=int, default=10_000, help="files for each reader (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0)
    chosen, faults = parser.parse_args(), 0
    print("| reader | n | refused | accepted | bad | slowest | mean |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name in chosen.readers or known:
        start = time.perf_counter()
        counts = known[name].fuzz(chosen.count, chosen.seed)
        mean = (time.perf_counter() - start) / chosen.count
        row = [chosen.count, counts.refused, counts.accepted, len(counts.bad)]
        print(f"| {name} | {' | '.join(map(str, row))} | {counts.slowest * 1e3:.0f} ms | {mean * 1e3:.2f} ms |")
        print("".join(f"{name}: {fault}\n" for fault in counts.bad[:20]), end="", flush=True)
        faults += len(counts.bad)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Read files of unknown origin: regular files and plain members of zip archives, in bounded memory and time.

Whatever cannot be read is refused by a UserError that names the file, and in an archive the member. Nothing is
extracted, and nothing in a file is executed.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from snnexp.errors import UserError

MIB = 1 << 20
# A recording: 2 million events of 8 bytes, ten times those of CIFAR10-DVS. Decoding takes up to 20 times the memory.
RECORDING_BYTES = 16 * MIB
# A zip archive's list of members: five times that of N-MNIST's 60,000. Python holds it in eight times the memory.
LIST_BYTES = 32 * MIB
# What a zip archive may unpack to: recordings shrink to a half or a third, but small archives of equal events more.
UNPACKED_RATIO, UNPACKED_FREE = 100, 64 * MIB
NUMBER_DIGITS = 9  # of a recording's number; N-MNIST has five
SHOWN = 1000  # characters of a name in a message
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link",
}
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks the other methods without a bound on memory


def shown(name: object) -> str:
    """Return `name` for a message: characters that would control a terminal are escaped, and a long name is cut."""
    text = str(name) if str(name).isprintable() else repr(str(name))[1:-1]
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]}"


@contextmanager
def refused(what: str, advice: str = "") -> Iterator[None]:
    """Turn any exception of a reader into the UserError '`what` (reason)`advice`'; a UserError passes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries raise many kinds for damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{what} ({shown(reason)}){advice}") from error


def regular(path: Path, limit: int | None = None) -> os.stat_result:
    """Return the status of the regular file `path` (links are followed) of at most `limit` bytes, without opening it.

    Raises UserError for everything else: links that lead nowhere, named pipes, devices, folders, larger files.
    """
    status = _status(path)
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UserError(f"{shown(path)} is {kind}, not a file: remove or rename it")
    if limit is not None and status.st_size > limit:
        raise UserError(f"{shown(path)} has {status.st_size:,} bytes, more than the {limit:,} that are read")
    return status


def opened(path: Path, limit: int | None = None) -> io.BufferedReader:
    """Open what `regular` accepts. Raises UserError."""
    regular(path, limit)
    with refused(f"{shown(path)} cannot be read"):
        # without O_NONBLOCK, a named pipe that has just taken the file's place would wait for its writer
        return io.BufferedReader(io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)))


def read_bytes(path: Path, limit: int = RECORDING_BYTES) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes. Raises UserError."""
    size = regular(path, limit).st_size
    with opened(path, limit) as file, refused(f"{shown(path)} cannot be read"):
        if len(data := file.read(size + 1)) != size:
            raise OSError(0, "it changes while it is read")
        return data


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder; links are followed. Raises UserError for one that leads nowhere."""
    return stat.S_ISDIR(_status(path).st_mode)


def listed(folder: Path) -> list[str]:
    """Return the names in `folder`, sorted, without hidden ones (.ipynb_checkpoints, ._*); none if there is no folder.

    Raises UserError if the folder cannot be listed.
    """
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be listed ({error.strerror})") from error


def by_number(names: Iterable[str], pattern: re.Pattern[str], place: Path) -> list[re.Match[str]]:
    """Return the matches of `pattern` in `names`, sorted by the group `number`; all groups together are unique.

    `place` holds the names. Raises UserError for a number that is not 1 to 9 digits, and for two recordings of one
    number (and of one label, if the pattern has that group): one of them would be counted twice.
    """
    found: dict[tuple[int, str | None], re.Match[str]] = {}
    for match in filter(None, map(pattern.search, names)):
        digits, name = match["number"], match.string
        if not (digits.isascii() and digits.isdigit() and len(digits) <= NUMBER_DIGITS):
            allowed = f"1 to {NUMBER_DIGITS} digits 0-9"
            raise UserError(f"{place}: {shown(name)} is not named by a number of {allowed}: remove or rename it")
        key = int(digits), match.groupdict().get("label")
        if key in found:
            raise UserError(f"{place} holds one recording twice, {shown(found[key].string)} and {shown(name)}")
        found[key] = match
    return sorted(found.values(), key=lambda match: (int(match["number"]), match.string))


class Zip:
    """The members of a zip file whose names end with `suffix`, read in place by any thread.

    Raises UserError for an archive that is incomplete or too large when unpacked, and for a member that is encrypted,
    compressed by an unusual method, no file, larger than a recording or named by a path that leads out of the archive.
    """

    def __init__(self, path: Path, suffix: str) -> None:
        self.path, self.lock = path, threading.Lock()
        size = regular(path).st_size
        with refused(f"{shown(path)} is not a complete zip archive", ": download it again"):
            self.zip = zipfile.ZipFile(_Sparing(opened(path).detach()))
        members = [m for m in self.zip.infolist() if m.filename.endswith(suffix) and _visible(m.filename)]
        for member in members:
            if fault := _fault(member):
                raise UserError(f"{shown(path)}:{shown(member.filename)} {fault}")
        if sum(member.compress_size for member in members) > size:
            raise UserError(f"{shown(path)} is not a zip archive of recordings: its members overlap")
        limit, unpacked = UNPACKED_FREE + UNPACKED_RATIO * size, sum(member.file_size for member in members)
        if unpacked > limit:
            raise UserError(
                f"{shown(path)} of {size:,} bytes unpacks to {unpacked:,}, more than {limit:,}: recordings do not "
                "compress like this"
            )
        self.names = [member.filename for member in members]
        self.members = dict(zip(self.names, members, strict=True))

    def identity(self) -> list[object]:
        """Return path, size and modification time, which change when the archive does."""
        status = regular(self.path)
        return [str(self.path.resolve()), status.st_size, status.st_mtime_ns]

    def read(self, name: str) -> bytes:
        """Return the bytes of the member `name`. Raises UserError if it is damaged."""
        member = self.members[name]
        with self.lock, refused(f"{shown(self.path)}:{shown(name)} is damaged", ": download the archive again"):
            with self.zip.open(member) as file:  # reading with a size keeps zipfile from unpacking more
                data = file.read(member.file_size) + file.read(1)
            if len(data) != member.file_size:
                raise EOFError(f"{len(data):,} bytes instead of {member.file_size:,}")
            return data


def _status(path: Path) -> os.stat_result:
    with refused(f"{shown(path)}, or what it links to, cannot be read"):
        return path.stat()


def _visible(name: str) -> bool:
    return "__MACOSX" not in name and not name.rpartition("/")[2].startswith(".")


def _fault(member: zipfile.ZipInfo) -> str | None:
    """Return why a member is not read; None for a plain one."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return f"is {KINDS.get(kind, 'something else')}, not a file"
    if member.flag_bits & 1:
        return "is encrypted: unpack the archive with its password, into a folder"
    if member.compress_type not in METHODS:
        return f"is compressed by method {member.compress_type}; only stored and deflated members are read"
    if member.file_size > RECORDING_BYTES:
        return f"unpacks to {member.file_size:,} bytes, more than the {RECORDING_BYTES:,} of a recording"
    if member.filename.startswith("/") or ".." in member.filename.split("/"):
        return "has a path that leads out of the archive"
    return None


class _Sparing(io.BufferedReader):
    """A file for zipfile, which would read a list of members of any length at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > LIST_BYTES:
            allowed = f"more than the {LIST_BYTES:,} that are read: unpack it into a folder"
            raise UserError(f"{shown(self.raw.name)}: the list of members has {size:,} bytes, {allowed}")  # type: ignore[attr-defined]
        return super().read(size)

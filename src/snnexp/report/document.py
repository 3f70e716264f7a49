"""The parts of a report, whatever its format."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from snnexp.analysis.seeds import short

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf(inity)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Link:
    text: str
    href: str


@dataclass(frozen=True)
class Name:
    """Text that somebody else chose, such as the name of a run; backticks in it mark nothing."""

    text: str


Words = str | Sequence[str | Link | Name]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; `backticks` in its words mark code."""

    words: Words
    label: str = ""


@dataclass(frozen=True)
class Table:
    """A table; cells are shown as they are, so shorten numbers with `shown` first."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Words]]

    def numeric(self, column: int) -> bool:
        """Return whether the column's cells are numbers (a mean and its spread count as one) or empty."""
        cells = [row[column] for row in self.rows]
        return any(cells) and all(isinstance(c, str) and (not c or is_number(c.split(" ± ")[0])) for c in cells)


@dataclass(frozen=True)
class Figure:
    """A PNG; `name`, a file name without suffix, is unique in a document."""

    name: str
    caption: str
    png: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the file's header."""
        return struct.unpack(">II", self.png[16:24])


@dataclass(frozen=True)
class Section:
    """A part with a heading, or a whole document. `name`, its anchor, is unique in a document."""

    name: str
    title: str
    blocks: Sequence[Paragraph | Table | Figure | Section]

    @property
    def link(self) -> Link:
        """A link to this section, within the document."""
        return Link(self.title, f"#{self.anchor}")

    @property
    def anchor(self) -> str:
        """The name as an address, without quotes, spaces or brackets."""
        return quote(self.name, safe="")


def is_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None


def shown(text: str) -> str:
    """Return a number with four significant digits; integers and other texts stay as they are."""
    return text if not is_number(text) or re.fullmatch(r"[-+]?\d+", text) else short(float(text), 4)


def parts_of(words: Words) -> list[str | Link | Name]:
    """Return words as a list of their parts."""
    return [words] if isinstance(words, str) else list(words)

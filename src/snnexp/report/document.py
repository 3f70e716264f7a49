"""What a report is made of, whatever it is written as."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from snnexp.analysis.seeds import short

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf(inity)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Link:
    text: str
    href: str


Words = str | Sequence[str | Link]


@dataclass(frozen=True)
class Paragraph:
    """`Backticks` in its words mark code."""

    words: Words
    label: str = ""


@dataclass(frozen=True)
class Table:
    """Cells are shown as they are: `shown` shortens a number first."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Words]]

    def numeric(self, column: int) -> bool:
        """Whether its cells are numbers (a mean and its spread count as one) or empty."""
        cells = [row[column] for row in self.rows]
        return any(cells) and all(isinstance(c, str) and (not c or number(c.split(" ± ")[0])) for c in cells)


@dataclass(frozen=True)
class Figure:
    """`name` is unique in a document: a file name without suffix."""

    name: str
    caption: str
    png: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the file's header says."""
        return struct.unpack(">II", self.png[16:24])


@dataclass(frozen=True)
class Section:
    """A part with a heading; a document is one, too. `name` is unique in a document: an anchor."""

    name: str
    title: str
    blocks: Sequence[Paragraph | Table | Figure | Section]

    @property
    def link(self) -> Link:
        """To it, within the document."""
        return Link(self.title, f"#{self.name}")


def number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None


def shown(text: str) -> str:
    """A number with four significant digits, an integer in full, any other text as it is."""
    return text if not number(text) or re.fullmatch(r"[-+]?\d+", text) else short(float(text), 4)


def plain(words: Words) -> list[str | Link]:
    """Words as a list of their parts."""
    return [words] if isinstance(words, str) else list(words)

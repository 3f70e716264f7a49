"""Write a document as Markdown (with GitHub's tables); figures are separate files."""

import re
from collections.abc import Callable
from urllib.parse import quote

from snnexp.report.document import Figure, Link, Name, Paragraph, Section, Table, Words, parts_of

ADDRESS = "%/:?#&=+~!$',;@[]"  # characters of an address that stay; brackets and spaces would end a link


def written(document: Section, figures: str) -> str:
    """Return the text; `figures` is the path of the figures' folder relative to the file."""
    return "\n\n".join(_section(document, figures, 1)) + "\n"


def _section(section: Section, figures: str, level: int) -> list[str]:
    lines = [f'<a id="{section.anchor}"></a>', f"{'#' * level} {escaped(section.title)}"]
    for block in section.blocks:
        match block:
            case Section():
                lines += _section(block, figures, min(level + 1, 6))
            case Paragraph():
                lines.append((f"**{block.label}** " if block.label else "") + _words(block.words, _with_code))
            case Table():
                lines.append(f"*{escaped(block.caption)}*")
                lines.append(_table(block))
            case Figure():
                lines.append(f"![{escaped(block.caption)}]({quote(f'{figures}/{block.name}.png')})")
    return lines


def _table(table: Table) -> str:
    marks = ["---:" if table.numeric(column) else "---" for column in range(len(table.columns))]
    rows = [[_words(cell, escaped) for cell in row] for row in (table.columns, *table.rows)]
    rows.insert(1, marks)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _words(words: Words, written: Callable[[str], str]) -> str:
    return "".join(_part(part, written) for part in parts_of(words))


def _part(part: str | Link | Name, written: Callable[[str], str]) -> str:
    match part:
        case Link():
            return f"[{escaped(part.text)}]({quote(part.href, safe=ADDRESS)})"
        case Name():
            return escaped(part.text)
    return written(part)


def _with_code(text: str) -> str:
    return "`".join(part if code % 2 else escaped(part) for code, part in enumerate(text.split("`")))


def escaped(text: str) -> str:
    """Escape text so that Markdown shows it as it is, even in a table."""
    text = re.sub(r"([\\*_\[\]<>|#`~$&])", r"\\\1", text)
    return re.sub(r"\s+", " ", text)

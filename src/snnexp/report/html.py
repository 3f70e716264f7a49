"""Write a document as one self-contained HTML page: style and images are embedded, and it may load nothing."""

import re
from base64 import b64encode
from collections.abc import Callable
from html import escape
from importlib.resources import files

from snnexp.report.document import Figure, Link, Name, Paragraph, Section, Table, Words, parts_of

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
DPI = 120  # of our figures; a CSS pixel is 1/96 inch
WIDE = 800  # CSS pixels; a wider figure has a row of its own


def written(document: Section) -> str:
    style = (files("snnexp.report") / "style.css").read_text(encoding="utf-8")
    return PAGE.format(title=escape(document.title), style=style, body="\n".join(_section(document, 1)))


def _section(section: Section, level: int) -> list[str]:
    lines = [f'<section id="{section.anchor}" class="level{level}">']
    lines.append(f"<h{level}>{escape(section.title)}</h{level}>")
    for block in section.blocks:
        match block:
            case Section():
                lines += _section(block, min(level + 1, 6))
            case Paragraph():
                label = f"<b>{escape(block.label)}</b> " if block.label else ""
                lines.append(f"<p>{label}{_words(block.words, _with_code)}</p>")
            case Table():
                lines += _table(block)
            case Figure():
                lines.append(_figure(block))
    return [*lines, "</section>"]


def _table(table: Table) -> list[str]:
    kinds = [' class="number"' if table.numeric(column) else "" for column in range(len(table.columns))]
    head = [f"<th{kind}>{_breakable(name)}</th>" for kind, name in zip(kinds, table.columns, strict=True)]
    rows = [
        [f"<td{kind}>{_words(cell, escape)}</td>" for kind, cell in zip(kinds, row, strict=True)] for row in table.rows
    ]
    return [
        '<div class="table"><table>',
        f"<caption>{escape(table.caption)}</caption>",
        f"<thead><tr>{''.join(head)}</tr></thead>",
        "<tbody>",
        *(f"<tr>{''.join(row)}</tr>" for row in rows),
        "</tbody></table></div>",
    ]


def _figure(figure: Figure) -> str:
    width, height = (round(side * 96 / DPI) for side in figure.size)
    source, caption = b64encode(figure.png).decode(), escape(figure.caption)
    kind = ' class="wide"' if width > WIDE else ""
    image = f'<img src="data:image/png;base64,{source}" width="{width}" height="{height}" alt="{caption}">'
    return f"<figure{kind}>{image}<figcaption>{caption}</figcaption></figure>"


def _words(words: Words, written: Callable[[str], str]) -> str:
    return "".join(_part(part, written) for part in parts_of(words))


def _part(part: str | Link | Name, written: Callable[[str], str]) -> str:
    match part:
        case Link():
            return f'<a href="{escape(part.href)}">{escape(part.text)}</a>'
        case Name():
            return escape(part.text)
    return written(part)


def _with_code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _breakable(name: str) -> str:
    """Escape a name and allow a line break after each slash, dot or underscore."""
    return re.sub(r"([/._])(?=.)", r"\1<wbr>", escape(name))

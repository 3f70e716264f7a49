"""Tables as lists of rows; `write` puts them into a folder as CSV files with a header line."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]  # the same keys in each


def write(tables: Mapping[str, Rows], folder: Path) -> None:
    """Save each table that has rows as `<folder>/<name>.csv`."""
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        if rows:
            with (folder / f"{name}.csv").open("w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)

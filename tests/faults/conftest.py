"""What the fault tests share: how often to try, and the table of what was tried."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TIMES = int(os.environ.get("FAULTS", "1"))  # each fault this many times as often
SEED = int(os.environ.get("FAULTS_SEED", "0"))
TABLE = os.environ.get("FAULTS_TABLE", "")  # a Markdown page whose table is written
MARK = "<!-- faults -->"
rows: dict[str, list[int]] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "faults: kills, failing servers, full disks, damaged files; `make test-faults`")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if config.option.markexpr == "faults" else True


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> random.Random:
    """Random moments, repeatable by FAULTS_SEED."""
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def tried() -> Iterator[Callable[[str, int, int], None]]:
    """Count what was tried, and what of it went wrong: `tried(what, n, bad)`. The test fails if anything is bad."""
    wrong = []

    def count(what: str, n: int, bad: int = 0) -> None:
        row = rows.setdefault(what, [0, 0])
        row[0] += n
        row[1] += bad
        wrong.extend([what] * bad)

    yield count
    assert not wrong, f"went wrong: {', '.join(sorted(set(wrong)))}"


def pytest_sessionfinish(exitstatus: int) -> None:
    if not rows:
        return
    lines = [
        "| fault | tried | bad |",
        "| --- | --- | --- |",
        *(f"| {k} | {n:,} | {b} |" for k, (n, b) in rows.items()),
    ]
    lines += ["", f"Seed {SEED}; the numbers are kills, runs and files that were tried."]
    print("\n" + "\n".join(lines))
    if TABLE and exitstatus == 0:
        page = Path(TABLE)
        head, _, rest = page.read_text().partition(MARK)
        page.write_text(f"{head}{MARK}\n" + "\n".join(lines) + f"\n{MARK}" + rest.partition(MARK)[2])

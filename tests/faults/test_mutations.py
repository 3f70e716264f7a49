"""Damaged files for every reader: a clean refusal or an acceptable content, in bounded time and memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from faults.conftest import SEED, TIMES
from faults.readers import readers

pytestmark = pytest.mark.faults
FILES = 10_000


@pytest.mark.parametrize("name", readers())
def test_damaged_files(name: str, tried: Callable[..., None]) -> None:
    counts = readers()[name].fuzz(FILES * TIMES, SEED)
    tried(f"damaged {name} file: crash, hang, memory, or a wrong content", FILES * TIMES, len(counts.bad))

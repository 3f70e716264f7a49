"""A GPU for each job of a sweep on one machine, by CUDA_VISIBLE_DEVICES."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from snnexp.errors import UserError
from snnexp.lock import try_lock
from snnexp.trial.place import PLACES

VISIBLE = "CUDA_VISIBLE_DEVICES"
FORM = "it must be an integer >= 1, a list of different GPUs such as [0,1], or null"


def gpus_of(given: Any) -> list[str]:
    """Return the names of the GPUs of a sweep: the first n visible ones for an integer n, or those of a list.

    Raises UserError for other values, and if fewer than n GPUs are visible according to CUDA_VISIBLE_DEVICES.
    """
    if given is None:
        return []
    if isinstance(given, Sequence) and not isinstance(given, str):
        named = [str(gpu) for gpu in given]
        if named and len(set(named)) == len(named):
            return named
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UserError(f"hydra.sweeper.gpus={given} is not allowed: {FORM}")
    visible = os.environ.get(VISIBLE)
    named = [str(n) for n in range(given)] if visible is None else [gpu for gpu in visible.split(",") if gpu]
    if len(named) < given:
        raise UserError(f"hydra.sweeper.gpus={given} is not allowed: {VISIBLE}={visible} names only {len(named)}")
    return named[:given]


@contextmanager
def on_a_gpu(gpus: Sequence[str], sweep: Path) -> Iterator[None]:
    """Give this process, and those that it starts, the GPU of the first slot that no other job of the sweep holds.

    Slots beyond the number of GPUs share them in turn. A slot is free as soon as its holder ends, even if it is killed.
    """
    if not gpus:
        yield
        return
    slot, lock = next((n, held) for n in count() if (held := try_lock(sweep / PLACES / f"slot-{n}.lock")))
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = gpus[slot % len(gpus)]
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before
        lock.release()

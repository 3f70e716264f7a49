"""Pauses of a study after jobs that failed for their surroundings (such as a full disk), not for their values."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from snnexp.errors import Outage

log = logging.getLogger("snnexp.sweep")
FIRST, LONGEST = 1.0, 60.0  # seconds


@dataclass
class Pause:
    """A pause before the next trial, doubled with each such failure in a row; together they last up to `limit` seconds.

    The values of such a trial are repeated, without using one of its attempts.
    """

    limit: float
    spent: float = 0.0
    until: float = 0.0
    reason: str = ""
    next: float = field(default_factory=lambda: FIRST)
    over: bool = False  # a job has failed after the longest wait

    def note(self, outcome: Mapping[str, Any]) -> None:
        """Begin a pause if the job failed for its surroundings; forget earlier ones if not."""
        if not outcome.get("outage"):
            self.spent, self.reason, self.next = 0.0, "", FIRST
            return
        self.reason = outcome["reason"]
        self.over = self.spent >= self.limit
        if not self.over:
            seconds = min(self.next, self.limit - self.spent)
            self.spent, self.next = self.spent + seconds, min(2 * self.next, LONGEST)
            self.until = time.monotonic() + seconds
            log.warning("the next trial begins in %g s, because this does not depend on its values", seconds)

    @property
    def on(self) -> bool:
        return time.monotonic() < self.until

    def check(self) -> None:
        """Raise Outage if the sweep has waited as long as it may."""
        if self.over:
            waited = f"stopped after waiting for {self.spent:g} s (hydra.sweeper.wait)"
            raise Outage(f"{waited}: {self.reason}\nThen the same command goes on; it repeats what has failed")

"""A task of snnexp that does nothing, for bench/sweep_overhead.py."""

from __future__ import annotations

from nothing import mark
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.base import Task


class NothingTask(Task):
    def objectives(self, session: Session) -> list[str]:
        return ["val/accuracy"]

    def run(self, session: Session, record: Record) -> dict[str, float]:
        mark()
        return record.tracked(lambda: {"val/accuracy": 0.5})

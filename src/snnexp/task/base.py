"""The contract of a task: one command of snnexp, chosen with `task=OPTION`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from snnexp.config import TRAINING
from snnexp.record import Record
from snnexp.session import Session
from snnexp.training import Metrics

CONVERTING = (*TRAINING, "conversion", "calibration", "mitigation")


class Task(ABC):
    """One command. The keys of its YAML file are its constructor's arguments, which refuses wrong ones (InvalidValue).

    `groups`: the config groups that take part in its run; the run's name, tags and parameters follow from them.
    `subject`: what names a run in which no group takes part (default: the task). `recorded`: whether the task keeps a
    run (`record.tracked`); False for commands that only show or send what earlier runs left.
    """

    groups: ClassVar[Sequence[str]] = ()
    recorded: ClassVar[bool] = True
    subject: str = ""

    def objectives(self, session: Session) -> Sequence[str]:
        """Return the validation metrics that `run` can give, for `objective=`. Raise UserError for wrong timesteps."""
        return ()

    @abstractmethod
    def run(self, session: Session, record: Record) -> Metrics:
        """Do the work and return the final metrics.

        Refuse what cannot run (UserError) before `record.tracked(work)` opens the run.
        """

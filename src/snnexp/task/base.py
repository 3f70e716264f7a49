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
    """One command. Its YAML file holds the arguments of its constructor, which raises InvalidValue for wrong ones.

    `groups`: the config groups that take part in its run; the run's name, tags and parameters follow from them.
    `subject`: the name of a run in which no group takes part (default: that of the task). `recorded`: whether the task
    records a run (`record.tracked`); False for commands that only show or send earlier results.
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

        Raise UserError for anything that cannot run before calling `record.tracked(work)`, which opens the run.
        """

"""Pruning, inside a job: report each epoch to the study, and ask whether to stop."""

from collections.abc import Mapping, Sequence

from snnexp.errors import UserError
from snnexp.trial.job import Address, Job


class Reporter:
    """The connection of a trial to its study and the study's pruner."""

    def __init__(self, address: Address) -> None:
        from snnexp.trial import storage  # imported late, so that runs outside a study do not load optuna

        self.address, self.exclusive, self.trial = address, storage.exclusive, storage.open_trial(address)
        self.told = 0

    def hopeless(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Report the epochs of `history` not reported yet, and return whether the trial should stop.

        Raises UserError if there is a pruner but the objective is not a metric of an epoch.
        """
        metric = self.address.objective
        if not isinstance(metric, str):  # Optuna cannot prune by several objectives
            return False
        if metric not in history[-1]:
            if self.address.pruner is None:
                return False
            raise UserError(
                f"a pruner needs the objective after every epoch, and {metric} is known only at the end: "
                f"use one of {', '.join(sorted(history[-1]))}, or hydra.sweeper.pruner=null"
            )
        with self.exclusive(self.address.storage):
            for epoch in range(self.told, len(history)):
                self.trial.report(history[epoch][metric], epoch + 1)
            self.told = len(history)
            return self.trial.should_prune()


def prune(history: Sequence[Mapping[str, float]]) -> bool:
    """Return whether the trial of this process should stop, given its `history` (a dict per epoch) so far."""
    global _reporter
    job = Job.current()
    if job is None or job.trial is None or not job.trial.reports:
        return False
    if _reporter is None or _reporter.address != job.trial:
        _reporter = Reporter(job.trial)
    return _reporter.hopeless(history)


_reporter: Reporter | None = None

"""Pruning, inside a job: report each epoch to the study, and ask whether to stop."""

from collections.abc import Mapping, Sequence

from snnexp.config import listed
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
        metrics = listed(self.address.objective)
        if missing := [metric for metric in metrics if metric not in history[-1]]:
            if self.address.pruner is None:
                return False
            raise UserError(
                f"a pruner needs the objective after every epoch, and {missing[0]} is known only at the end: "
                f"use one of {', '.join(sorted(history[-1]))}, or hydra.sweeper.pruner=null"
            )
        with self.exclusive(self.address.storage):
            for epoch in range(self.told, len(history)):
                self._report(epoch + 1, [history[epoch][metric] for metric in metrics])
            self.told = len(history)
            return self._judged()

    def _report(self, epoch: int, values: list[float]) -> None:
        if isinstance(self.address.objective, str):
            self.trial.report(values[0], epoch)
        elif self.address.pruner:  # Optuna takes no reports of several objectives
            from snnexp.trial.dominated import EPOCH

            self.trial.set_user_attr(f"{EPOCH}{epoch}", values)

    def _judged(self) -> bool:
        if isinstance(self.address.objective, str):
            return self.trial.should_prune()
        study = self.trial.study
        return study.pruner.prune(study, study._storage.get_trial(self.trial._trial_id))


def compared() -> list[str]:
    """Return the metrics that the pruner of this process's trial compares after each epoch; none without a pruner."""
    job = Job.current()
    return listed(job.trial.objective) if job and job.trial and job.trial.pruner and job.trial.reports else []


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

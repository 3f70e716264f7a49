"""The loop of a study: ask, run, tell. All state is in the study, so a parent that restarts or joins finds it there."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from optuna.trial import FrozenTrial, TrialState, create_trial

from hydra_plugins.snnexp_optuna._job import OUTCOME, completed, failed
from hydra_plugins.snnexp_optuna._owner import JOB, Owner, lock_of_trial
from hydra_plugins.snnexp_optuna._pause import Pause
from hydra_plugins.snnexp_optuna._progress import of_study
from hydra_plugins.snnexp_optuna._seeds import RUN, averaged, kept, seed_folder
from hydra_plugins.snnexp_optuna._space import Space
from hydra_plugins.snnexp_optuna._stop import Stop
from snnexp.errors import UserError
from snnexp.sweep.parent import Parent
from snnexp.sweep.progress import Progress, live
from snnexp.tracking import SWEEP_TAG
from snnexp.trial.counted import REPLACED, TAKEN, counts
from snnexp.trial.dominated import by_epoch
from snnexp.trial.job import Address, Job
from snnexp.trial.place import told
from snnexp.trial.storage import exclusive

log = logging.getLogger("snnexp.sweep")
POLL, RECOVER = 1.0, 5.0  # seconds
Outcome = Mapping[str, Any]  # state, values, reason, again
ATTEMPT, RETRY_OF = "attempt", "retry_of"
GRID = ("search_space", "grid_id")
EXHAUSTED = "exhausted by"  # attribute of a study: the sampler class that has no more points


@dataclass
class Loop:
    """Run trials until the study has `n_trials`, including those of other parents."""

    study: optuna.Study
    url: str
    space: Space
    fixed: Sequence[str]
    settings: Mapping[str, Any]
    launcher: Launcher
    owner: Owner
    parent: Parent
    objective: str | list[str]
    stop: Stop
    pause: Pause
    seeds: Sequence[int] = ()  # of each trial; none: a trial is one job
    begun: float = field(default_factory=time.monotonic)
    recovered: float = 0.0
    failures: int = 0
    last_reason: str = ""
    ended: str = ""  # why the study ends early
    taken: Sequence[str] = ()  # what the study took over from elsewhere, and what did not fit

    def __post_init__(self) -> None:
        wanted = self.settings["n_trials"]
        if self.sampler == "BruteForceSampler":  # it ends when it has tried all points
            there = sum(TAKEN in trial.user_attrs for trial in self._trials())
            wanted = min(wanted, self.space.size() - there)
        self.progress = Progress(wanted, "trials")

    def run(self) -> None:
        """Run trials until nothing is left to do. After Ctrl-C, running trials stay open, to be resumed later."""
        with self.progress:
            self._run()

    def _run(self) -> None:
        running: dict[Future[Outcome], optuna.Trial] = {}
        self.recover()
        pool = self._pool()
        try:
            while True:
                while len(running) < self.settings["parallel"] and (trial := self.ask()):
                    running[pool.submit(self.run_trial, trial)] = trial
                if not running:
                    if not self._waits_for_others():
                        return
                    time.sleep(POLL)
                for future in wait(running, POLL, FIRST_COMPLETED).done:
                    self.tell(running.pop(future), future.result())
                if time.monotonic() - self.recovered > RECOVER:
                    self.recover()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def ask(self) -> optuna.Trial | None:
        """Return the next trial, a waiting retry or a new one; None if none can begin now."""
        if self._stopped() or self.pause.on:
            return None
        with exclusive(self.url):
            trials = self._trials()
            if why := self.stop.reason(trials):
                self.ended = why
                log.info("no further trial begins: %s", why)
                return None
            waiting = any(t.state == TrialState.WAITING for t in trials)
            full = sum(map(counts, trials)) >= self.settings["n_trials"]
            if not waiting and (full or self.study.user_attrs.get(EXHAUSTED) == self.sampler):
                return None
            trial = self.study.ask()
            self.space.suggest(trial)
            trial.set_user_attr(JOB, self.owner.mark(trial.number))
        self.progress.update(of_study(self.study, self._trials(), self.space.shown))
        return trial

    def run_trial(self, trial: optuna.Trial) -> Outcome:
        """Run the job of the trial, or its jobs; return the outcome, as far as it is known here."""
        return averaged(self, trial) if self.seeds else self.run_job(trial)

    def run_job(self, trial: optuna.Trial, seed: int | None = None, run_id: str | None = None) -> Outcome:
        """Run one job of the trial, in the run `run_id` if it is that of one seed; return its outcome."""
        address = self._address(trial, seed)
        varied = [key for d in self.space.dimensions for key in d.keys] + ["seed"] * (seed is not None)
        name = self.named(trial) if seed is None else f"seed={seed}"
        tags = self.tags(trial) | ({SWEEP_TAG: self.parent.run_id} if run_id and self.parent.run_id else {})
        quiet = self.settings["parallel"] > 1 or live()
        job = Job(run_id or self.parent.run_id, varied, name, tags, quiet, address, str(self.owner.folder))
        overrides = [*self.fixed, *self.space.overrides(trial.params), *self._of_seed(trial, seed), job.override]
        outcome: dict[str, Any] = {"state": "FAIL", "reason": "the job ended without an answer", "again": True}
        try:
            (done,) = self.launcher.launch([overrides], initial_job_idx=trial.number)
        except Exception as error:  # e.g. a worker of the launcher died, or the cluster refused the job
            outcome |= {"reason": f"{type(error).__name__}: {error}".split("\n", 1)[0][:500]}
        else:
            if not self.settings["outlives"]:
                ended = done.status == JobStatus.COMPLETED
                outcome = completed(done.return_value) if ended else failed(done._return_value)
        return self._noted(trial, address.outcome, outcome)

    def named(self, trial: optuna.Trial) -> str:
        """Return the name of the trial's run."""
        return f"{trial.number}: {self.space.shown(trial.params)}"

    def tags(self, trial: optuna.Trial) -> dict[str, str]:
        """Return the tags of the trial's runs."""
        return {"study": self.study.study_name, "trial": str(trial.number)}

    def _address(self, trial: optuna.Trial, seed: int | None) -> Address:
        reports = seed is None or seed == self.seeds[0]  # the pruner compares epochs of the same seed
        outcome = OUTCOME if seed is None else f"{OUTCOME} seed={seed}"
        pruner = self.settings["pruner"]
        where = self.url, self.study.study_name, trial._trial_id
        return Address(*where, pruner, self.objective, outcome, reports, self.settings["wait"])

    def _of_seed(self, trial: optuna.Trial, seed: int | None) -> list[str]:
        """Return the overrides of a seed's job, whose folder lies inside that of the trial."""
        if seed is None:
            return []
        return [f"seed={seed}", f"hydra.sweep.subdir='{seed_folder(Path(self.settings['subdir']), seed)}'"]

    def _noted(self, trial: optuna.Trial, name: str, outcome: Outcome) -> Outcome:
        """Return the outcome that the job wrote to the study, or else the given one, which for a seed is written."""
        if name != OUTCOME:
            with exclusive(self.url):
                if (known := self.frozen(trial._trial_id).user_attrs.get(name)) is None:
                    trial.set_user_attr(name, known := dict(outcome))
            return known
        return outcome

    def tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        """Record the outcome that the job wrote to the study, or else the given one."""
        frozen = self.frozen(trial._trial_id)
        if self._finish(frozen, frozen.user_attrs.get(OUTCOME, outcome)):
            self._close(frozen)

    def recover(self) -> None:
        """End the trials whose parents died, with the outcome that the job wrote, or else as failed."""
        self.recovered = time.monotonic()
        failed = []
        with exclusive(self.url):
            running = self._trials(TrialState.RUNNING)
            for trial in [t for t in running if not self.owner.alive(t, self.settings["silence"])]:
                gone = {"state": "FAIL", "reason": "its sweep was killed", "again": True}
                if self._finish(trial, trial.user_attrs.get(OUTCOME, gone), blame=False):
                    failed.append(trial)
        for trial in failed:  # without the lock: a slow store would delay all parents
            self._close(trial)

    def check(self) -> None:
        """Raise UserError if no trial was completed or too many failed."""
        self.pause.check()
        reason = f"; the last reason: {self.last_reason}"
        if self.failures >= self.settings["max_failures"]:
            raise UserError(f"gave up after {self.failures} failed trials in a row{reason}")
        if not self._trials(TrialState.COMPLETE, TrialState.PRUNED):
            raise UserError(f"no trial of study {self.study.study_name} was completed{reason}")

    def _pool(self) -> Executor:
        """Return the executor that waits for jobs: this thread, or several threads."""
        if self.settings["parallel"] == 1:
            return _Here()
        if type(self.launcher).__name__ == "JoblibLauncher":  # Hydra executes plugins again, so classes may differ
            # create joblib's executor, without workers: threads that create it concurrently can get it half initialized
            self.launcher.launch([], initial_job_idx=0)
        return ThreadPoolExecutor(self.settings["parallel"])

    def _finish(self, trial: FrozenTrial, outcome: Outcome, blame: bool = True) -> bool:
        """Record the outcome in the study; return whether the trial failed."""
        wanted, values = len(self.study.directions), outcome.get("values", [])
        if outcome["state"] == "COMPLETE" and len(values) != wanted:
            reason = f"the job returned {len(values)} values for {wanted} objectives"
            outcome = {"state": "FAIL", "reason": reason, "again": False}
        state, replaced = TrialState[outcome["state"]], False
        with exclusive(self.url):
            if self.frozen(trial._trial_id).state != TrialState.RUNNING:
                return False  # another parent was faster
            if state == TrialState.FAIL:
                self.study._storage.set_trial_user_attr(trial._trial_id, OUTCOME, dict(outcome))
                replaced = self._retry(trial, bool(outcome["again"]), blame and not outcome.get("outage"))
            try:
                self.study.tell(trial.number, outcome.get("values"), state, skip_if_finished=True)
            except RuntimeError as error:  # a sampler without further points calls study.stop()
                if "Study.stop" not in str(error):
                    raise
                self.study.set_user_attr(EXHAUSTED, self.sampler)
        if blame:
            self.failures = 0 if state != TrialState.FAIL else self.failures + (not replaced)
            self.last_reason = outcome.get("reason", "")
            self._say(trial, outcome)
            self.pause.note(outcome)
        return state == TrialState.FAIL

    def _close(self, trial: FrozenTrial) -> None:
        folder = told(lock_of_trial(trial))
        self.parent.close_child(folder)
        if folder and trial.user_attrs.get(RUN) and folder.name.startswith("seed="):
            self.parent.close_child(folder.parent)

    def _retry(self, trial: FrozenTrial, again: bool, blame: bool) -> bool:
        """Enqueue the values of the trial again if it may be repeated; return whether it may.

        Only a job that died while its parent was alive uses an attempt.
        """
        attempt = trial.user_attrs.get(ATTEMPT, 0) + blame
        if not again or attempt > self.settings["retries"]:
            return False
        self.study._storage.set_trial_user_attr(trial._trial_id, REPLACED, True)
        complete = JOB in trial.user_attrs  # if not, its parent died before it had sampled the values
        params = trial.params if complete else trial.system_attrs.get("fixed_params")
        repeated = {t.user_attrs.get(RETRY_OF) for t in self._trials()}
        if params and trial.number not in repeated:
            # like study.enqueue_trial, but with the place in the grid that a GridSampler needs
            place = {name: trial.system_attrs[name] for name in GRID if name in trial.system_attrs}
            attrs = kept(trial) | {RETRY_OF: trial.number, ATTEMPT: attempt}
            place["fixed_params"] = params
            self.study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attrs, system_attrs=place))
        return True

    @property
    def sampler(self) -> str:
        return type(self.study.sampler).__name__

    def _stopped(self) -> bool:
        timeout = self.settings["timeout"]
        late: bool = timeout is not None and time.monotonic() - self.begun > timeout
        return late or bool(self.ended) or self.pause.over or bool(self.failures >= self.settings["max_failures"])

    def _waits_for_others(self) -> bool:
        return not self._stopped() and (self.pause.on or bool(self._trials(TrialState.RUNNING)))

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def frozen(self, trial_id: int) -> FrozenTrial:
        """Return the trial as the storage knows it now."""
        return self.study._storage.get_trial(trial_id)

    def _say(self, trial: FrozenTrial, outcome: Outcome) -> None:
        words = {
            "COMPLETE": lambda: ", ".join(f"{value:.4g}" for value in outcome["values"]),
            "PRUNED": lambda: (
                f"pruned: {outcome['reason']}"
                if "reason" in outcome
                else f"pruned after {len(by_epoch(self.frozen(trial._trial_id)))} epochs"
            ),
            "FAIL": lambda: f"failed: {outcome['reason']}",
        }[outcome["state"]]()
        self.progress.update(of_study(self.study, self._trials(), self.space.shown))
        log.info("trial %d   %s   %s", trial.number, self.space.shown(trial.params), words)
        if not live():
            log.info("  %s", self.progress.line)


class _Here(Executor):
    """Run a submitted function immediately and in this thread, because only the main thread receives signals."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **more: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **more))
        return future

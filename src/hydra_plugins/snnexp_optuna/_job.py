"""The process of a trial: it holds the lock of its folder, and writes its outcome to the study before it ends.

So a parent that was killed and restarted finds the results of its jobs, and a job without an outcome has died.
"""

import ctypes
import logging
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from hydra_plugins.snnexp_optuna._devices import on_a_gpu
from snnexp.config import defaults
from snnexp.errors import Outage, Pruned, UserError
from snnexp.lock import locked
from snnexp.signals import handled
from snnexp.trial.job import Address, Job
from snnexp.trial.place import lock_of, tell

log = logging.getLogger("snnexp.sweep")
OUTCOME = "outcome"


class Died(Exception):
    """The process of a job ended without an answer."""


class Work:
    """The task function of the jobs of a sweep. Picklable, because launchers send it to other processes.

    With `isolate` each call runs in a process of its own, whose death raises Died here. With `outlives` a call may
    continue after its parent has died, and therefore writes its outcome to the study. Each call has one of `gpus`.
    """

    def __init__(
        self, function: Callable[[DictConfig], Any], isolate: bool, outlives: bool, gpus: Sequence[str] = ()
    ) -> None:
        self.function, self.isolate, self.outlives, self.gpus = function, isolate, outlives, gpus

    def __call__(self, config: DictConfig) -> Any:
        with on_a_gpu(self.gpus, Path(HydraConfig.get().sweep.dir)):
            return self._told(config)

    def _told(self, config: DictConfig) -> Any:
        job = Job.current()
        if job is None or job.sweep is None:
            return self._call(config)
        hydra, sweep = HydraConfig.get(), Path(job.sweep)
        where: dict[str, Any] = {"overrides": list(hydra.overrides.task), "varied": list(job.varied)}
        where["begun"] = time.time()
        tell(sweep, hydra.job.num, Path(hydra.runtime.output_dir), **where)
        try:
            if job.trial is None or not self.outlives:
                return self._call(config)
            return self._kept(config, job.trial, lock_of(sweep, hydra.job.num))
        except Exception as error:
            reason = str(failed(error, quiet=True).get("reason", "pruned"))
            tell(sweep, hydra.job.num, Path(hydra.runtime.output_dir), **where, reason=reason)
            raise

    def _kept(self, config: DictConfig, trial: Address, lock: Path) -> Any:
        """Run the job with its lock, and write its outcome to the study."""
        from snnexp.trial.outage import allow  # late: optuna
        from snnexp.trial.storage import exclusive, open_trial

        allow(trial.storage, trial.wait)

        with locked(lock, patience=10):  # a parent that checks it holds it for a moment
            with exclusive(trial.storage):
                frozen = open_trial(trial).storage.get_trial(trial.id)
            if frozen.state.is_finished():  # its parent died while it was queued on a cluster, and it was given up
                log.info("trial %d has already ended: nothing to do", frozen.number)
                return None
            outcome: dict[str, Any] = {}
            try:
                value = self._call(config)
                outcome = completed(value)
                return value
            except Exception as error:
                outcome = failed(error)
                raise
            finally:  # no outcome after an exit or an interrupt
                if outcome:
                    with exclusive(trial.storage):
                        open_trial(trial).set_user_attr(trial.outcome, outcome)

    def _call(self, config: DictConfig) -> Any:
        if not self.isolate:
            try:
                return self.function(config)
            except SystemExit as error:  # which would make Hydra end the whole sweep
                raise Died(f"exit status {error.code}") from error
        _preload(config)
        return isolated(self.function, config)


def completed(value: Any) -> dict[str, Any]:
    """Return the outcome of a job that returned `value`."""
    values = value if isinstance(value, list | tuple) else [value]
    if any(not isinstance(v, int | float) or isinstance(v, bool) for v in values):
        return {"state": "FAIL", "reason": f"the objective is {value}, not a number", "again": False}
    if any(math.isnan(v) for v in values):
        return {"state": "FAIL", "reason": f"the objective is {value}", "again": False}
    return {"state": "COMPLETE", "values": [float(v) for v in values]}


def failed(error: Exception, quiet: bool = False) -> dict[str, Any]:
    """Return the outcome of a job that raised `error`. It is worth another attempt unless the user must act first.

    After an `outage` of the surroundings, which says nothing about the values, that attempt does not count.
    """
    if isinstance(error, Pruned) or type(error).__name__ == "TrialPruned":
        return {"state": "PRUNED"}
    if not isinstance(error, UserError | Died) and not quiet:
        log.error("a trial failed:", exc_info=error)
    reason = str(error) or type(error).__name__
    return {
        "state": "FAIL",
        "reason": reason[:500],
        "again": isinstance(error, Outage) or not isinstance(error, UserError),
        "outage": isinstance(error, Outage),
    }


def isolated(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` in a forked process, and return its value or raise its exception.

    Raises Died if that process is killed or exits.
    """
    # a fork takes milliseconds, because imported modules stay imported
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(writer, function, arguments), daemon=False)
    process.start()
    writer.close()
    try:
        kind, value = reader.recv()
    except EOFError:
        process.join()
        raise Died(_death(process.exitcode)) from None
    except KeyboardInterrupt:
        with handled(lambda number, frame: process.terminate()):  # a second Ctrl-C is passed on as well
            process.terminate()  # on this signal a training writes a checkpoint
            process.join()
        raise
    process.join()
    if kind == "error":
        raise value
    return value


def _answer(writer: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: this process is killed if its parent dies
    try:
        answer: tuple[str, Any] = ("value", function(*arguments))
    except Exception as error:
        answer = ("error", error)
    except KeyboardInterrupt:
        sys.exit(130)  # without a message: the parent was interrupted as well
    try:
        writer.send(answer)
    except Exception:  # an exception that cannot be pickled
        writer.send(("error", RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exit status {code}"


def _preload(config: DictConfig) -> None:
    """Import and compose what jobs need, once, before forking. The imports start no threads and touch no GPU."""
    if "task" not in config:  # not a task of snnexp
        return
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import snnexp.task.train  # noqa: F401
    from snnexp import tracking

    defaults()
    if config.get("tracking", {}).get("_target_") == "snnexp.tracking.MLflow":
        tracking.preload()

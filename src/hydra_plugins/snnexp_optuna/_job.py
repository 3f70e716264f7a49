"""A trial where it runs: it keeps its folder's lock, and leaves its outcome in the study before it ends.

So a parent that was killed learns later what its jobs found, and a job that left no outcome has died.
"""

from __future__ import annotations

import ctypes
import logging
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from snnexp.address import locked
from snnexp.errors import Pruned, UserError
from snnexp.trial.job import Job

log = logging.getLogger("snnexp.sweep")
OUTCOME, LOCK = "outcome", ".trial"


class Died(Exception):
    """A job's process ended without an answer."""


class Work:
    """The task function of a sweep's jobs. Picklable, for launchers send it to other processes.

    With `isolate` each call is a process of its own, whose death is an exception here (Died). With `outlives` a call
    may go on when its parent has died, and so leaves its outcome in the study.
    """

    def __init__(self, function: Callable[[DictConfig], Any], isolate: bool, outlives: bool) -> None:
        self.function, self.isolate, self.outlives = function, isolate, outlives

    def __call__(self, config: DictConfig) -> Any:
        job = Job.current()
        if job is None or job.trial is None or not self.outlives:
            return self._call(config)
        from snnexp.trial.storage import exclusive, trial  # late: optuna

        with _held(Path(HydraConfig.get().runtime.output_dir)):
            with exclusive(job.trial.storage):
                frozen = trial(job.trial).storage.get_trial(job.trial.id)
            if frozen.state.is_finished():  # it waited on a cluster while its parent died, and was given up
                log.info("trial %d has ended meanwhile: nothing to do", frozen.number)
                return None
            outcome: dict[str, Any] = {}
            try:
                value = self._call(config)
                outcome = completed(value)
                return value
            except Exception as error:
                outcome = failed(error)
                raise
            finally:  # an exit or an interrupt leaves no outcome
                if outcome:
                    with exclusive(job.trial.storage):
                        trial(job.trial).set_user_attr(OUTCOME, outcome)

    def _call(self, config: DictConfig) -> Any:
        if not self.isolate:
            try:
                return self.function(config)
            except SystemExit as error:  # Hydra would end the whole sweep
                raise Died(f"exit status {error.code}") from error
        _preload(config)
        return isolated(self.function, config)


def completed(value: Any) -> dict[str, Any]:
    """The outcome of a job that returned `value`."""
    values = value if isinstance(value, list | tuple) else [value]
    if any(not isinstance(v, int | float) or isinstance(v, bool) for v in values):
        return {"state": "FAIL", "reason": f"the objective is {value}, not a number", "again": False}
    if any(math.isnan(v) for v in values):
        return {"state": "FAIL", "reason": f"the objective is {value}", "again": False}
    return {"state": "COMPLETE", "values": [float(v) for v in values]}


def failed(error: Exception) -> dict[str, Any]:
    """The outcome of a job that raised `error`: one of the user's would only happen again; anything else may not."""
    if isinstance(error, Pruned) or type(error).__name__ == "TrialPruned":
        return {"state": "PRUNED"}
    if not isinstance(error, UserError | Died):
        log.error("a trial failed:", exc_info=error)
    reason = str(error) or type(error).__name__
    return {"state": "FAIL", "reason": reason[:500], "again": not isinstance(error, UserError)}


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Whoever looks at the folder meanwhile sees that the trial is alive."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with locked(path, patience=10):  # whoever looks at it holds it for a moment
        yield
    path.unlink(missing_ok=True)


def isolated(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` in a forked process, and return or raise what it did.

    Raises Died if that process is killed or exits.
    """
    # a fork costs milliseconds, for what is imported stays imported
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
        process.terminate()  # a training answers with a checkpoint
        process.join()
        raise
    process.join()
    if kind == "error":
        raise value
    return value


def _answer(writer: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: killed when the process that waits for it is
    try:
        answer: tuple[str, Any] = ("value", function(*arguments))
    except Exception as error:
        answer = ("error", error)
    except KeyboardInterrupt:
        sys.exit(130)  # told already; the process that waits was interrupted as well
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
    """Import what jobs need once, in the process that forks them. Nothing of it starts threads or touches a GPU."""
    if "task" not in config:  # not ours
        return
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import snnexp.task.train  # noqa: F401
    from snnexp import tracking

    if config.get("tracking", {}).get("_target_") == "snnexp.tracking.MLflow":
        tracking.preload()

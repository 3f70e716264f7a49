"""Child processes that need not import torch, mlflow and optuna again: forks of the test process.

They are processes like any other (signals, kills, locks, exit statuses), with their own environment, folder and output.
Tests of what a fresh interpreter does use `subprocess` instead.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra

from snnexp.signals import SIGNALS

fork = multiprocessing.get_context("fork")


@cache
def preload() -> None:
    """Import, once for all children, what a training, its tracker and a study import late."""
    with warnings.catch_warnings(action="ignore"), TemporaryDirectory() as folder:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot
        import optuna.storages.journal
        import optuna.visualization.matplotlib
        import sklearn.ensemble  # noqa: F401
        from hydra.core.plugins import Plugins

        Plugins.instance()  # first: it executes the modules of plugins, even if they are imported already
        import hydra_plugins.snnexp_optuna._study  # noqa: F401
        import snnexp.task.train
        import snnexp.tracking.client

        snnexp.tracking.client.preload()
        import mlflow.pytorch  # noqa: F401

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(storage=f"sqlite:///{folder}/study.db")  # its parts are imported when first used
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)


class Forked:
    """A child that calls `function()` with `sys.argv = argv`, in a session of its own; its output goes to files.

    The interface is that of `subprocess.Popen` in text mode with both outputs piped.
    """

    started: ClassVar[list[Forked]] = []
    count: ClassVar[int] = 0

    def __init__(
        self, function: Callable[[], object], *argv: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        preload()
        Forked.count += 1
        self.files = [folder / f"child{Forked.count}.{name}" for name in ("out", "err")]
        given = dict(os.environ if environment is None else environment)
        self.process: Any = fork.Process(target=_child, args=(function, list(argv), folder, self.files, given))
        sys.stdout.flush()
        sys.stderr.flush()
        self.process.start()
        Forked.started.append(self)

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode  # type: ignore[no-any-return]

    def poll(self) -> int | None:
        return self.returncode

    def ends_within(self, seconds: float) -> bool:
        """Wait for the end, `seconds` at most; return whether it has come."""
        self.process.join(seconds)
        return self.returncode is not None

    def wait(self, timeout: float = 300) -> int:
        """Return the exit status: -N if signal N ended the child. Raises TimeoutError, and kills it, if it hangs."""
        if not self.ends_within(timeout):
            self.kill()
            raise TimeoutError(f"the child did not end within {timeout:g} s:\n{self.output()[1]}")
        return int(self.process.exitcode)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait, and return what was written to stdout and stderr."""
        self.wait(timeout)
        return self.output()

    def output(self) -> tuple[str, str]:
        """Return what was written to stdout and stderr so far."""
        out, err = (file.read_text() if file.exists() else "" for file in self.files)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the child, not its own children, and wait for its end."""
        self.send_signal(signal.SIGKILL)
        self.process.join()

    @classmethod
    def clear(cls) -> None:
        """Kill all children that still run, and whatever they have started."""
        for child in cls.started:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.kill()
        cls.started.clear()


def _child(
    function: Callable[[], object], argv: list[str], folder: Path, files: list[Path], environment: dict[str, str]
) -> None:
    os.setsid()
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number, file in enumerate(files, 1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = argv
    warnings.resetwarnings()
    GlobalHydra.instance().clear()
    try:
        function()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # as at the end of a program: joblib's workers end here

"""The command line: compose the config, check it, run one task, return its objective."""

from __future__ import annotations

import io
import os
import pwd
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from snnexp.callable import called_as
from snnexp.callbacks import close_grid
from snnexp.config import check_objective, checked_config, conf_dir, listed
from snnexp.errors import explained
from snnexp.masking import masking_errors
from snnexp.mistakes import reported
from snnexp.signals import held, ignored, interrupting
from snnexp.sweep.shown import of_first_job
from snnexp.trust import guard

if TYPE_CHECKING:
    from snnexp.record import Record
    from snnexp.training import Metrics


@hydra.main(config_path=conf_dir(), config_name="config", version_base="1.3")
def run(cfg: DictConfig) -> float | list[float] | None:
    try:
        with interrupting():
            return _run(cfg)
    except Exception as error:
        if told := explained(error):
            raise told from error
        raise


def _run(cfg: DictConfig) -> float | list[float] | None:
    record, result = performed(cfg)
    return objective(record.config["objective"], result)


def performed(cfg: DictConfig) -> tuple[Record, Metrics]:
    """Run the task of a composed config; return its record and its final metrics."""
    config = checked_config(cfg)
    check_objective(config["objective"])
    from snnexp.build import build  # imported late, so that a bad config is rejected without loading torch
    from snnexp.record import Record
    from snnexp.session import Session
    from snnexp.task.base import Task

    hydra_config = HydraConfig.get()
    named = {"task": str(config["task"]["_target_"]).rpartition(".")[2]}  # if a file writes the task out in full
    choices = named | {group: str(o) for group, o in hydra_config.runtime.choices.items() if o is not None}
    session, task = Session(config, choices), build("task", config, Task)
    record = Record(session, task, Path(hydra_config.runtime.output_dir), hydra_config.overrides.task)
    try:
        record.check()
        return record, task.run(session, record)
    finally:
        if record.new_folder.is_dir() and not any(record.new_folder.iterdir()):
            record.new_folder.rmdir()  # Hydra makes it before it is known whether there is anything to write


def objective(names: str | list[str] | None, result: dict[str, float]) -> float | list[float] | None:
    """Return the objective's value (a list for several) in a task's `result`; None if the task gave no such metric."""
    if names is None or not set(listed(names)) <= set(result):
        return None
    return result[names] if isinstance(names, str) else [result[name] for name in names]


@masking_errors()
def main() -> None:
    """Run the console command. Exit with status 0, 1 after an error, 130 after Ctrl-C, SIGTERM or SIGHUP."""
    os.environ.setdefault("LOGURU_LEVEL", "WARNING")  # SpikingJelly logs its choices when it is imported
    _check_surroundings()
    guard()
    with reported(sys.argv[1:]):
        sys.argv[1:] = of_first_job(sys.argv[1:])
        with interrupting():
            interrupted = _interrupted()
    if interrupted:
        leave(130)


def _check_surroundings() -> None:
    """Supply what containers and ASCII locales lack. Raises SystemExit if the working directory was deleted."""
    try:
        Path.cwd()
    except FileNotFoundError:
        sys.exit("the working directory no longer exists: change to another one (cd DIR) and start again")
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:  # a user id without an account has neither home nor name; Docker sets HOME=/ as well
        os.environ.setdefault("HOME", "/")
        os.environ.setdefault("LOGNAME", f"uid{os.getuid()}")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale may lack characters of tables and names
            stream.reconfigure(errors="backslashreplace")


def _interrupted() -> bool:
    """Run the jobs; return whether a signal ended them."""
    try:
        run()
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        with held():
            close_grid("KILLED")
        return True
    finally:
        with held():
            close_grid("FAILED")
    return False


def leave(code: int) -> None:
    """Exit now. A normal exit would wait for a sweep's threads until their jobs, which go on without us, are done."""
    ignored()
    if any(not t.daemon and t is not threading.current_thread() for t in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


called_as(__name__, "run")

if __name__ == "__main__":
    main()

"""The command line: compose the config, check it, run one task, return its objective."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from snnexp.callbacks import close_grid
from snnexp.config import check_objective, checked_config, conf_dir, listed
from snnexp.masking import masking_errors


@hydra.main(config_path=conf_dir(), config_name="config", version_base="1.3")
def run(cfg: DictConfig) -> float | list[float] | None:
    config = checked_config(cfg)
    check_objective(config["objective"])
    from snnexp.build import build  # imported late, so that a bad config is rejected without loading torch
    from snnexp.record import Record
    from snnexp.session import Session
    from snnexp.task.base import Task

    hydra_config = HydraConfig.get()
    choices = {group: str(option) for group, option in hydra_config.runtime.choices.items() if option is not None}
    session, task = Session(config, choices), build("task", config, Task)
    record = Record(session, task, Path(hydra_config.runtime.output_dir), hydra_config.overrides.task)
    try:
        record.check()
        return objective(config["objective"], task.run(session, record))
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
    """Run the console command. Exit with status 0, 1 after an error, 130 after Ctrl-C."""
    os.environ.setdefault("LOGURU_LEVEL", "WARNING")  # SpikingJelly logs its choices when it is imported
    try:
        run()
    except KeyboardInterrupt:
        close_grid("KILLED")
        leave(130)
    finally:
        close_grid("FAILED")


def leave(code: int) -> None:
    """Exit now. A normal exit would wait for a sweep's threads until their jobs, which go on without us, are done."""
    if any(not t.daemon and t is not threading.current_thread() for t in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()

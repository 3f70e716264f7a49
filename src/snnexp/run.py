"""The command line: compose, check, one task, its objective."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from snnexp.callbacks import close_grid
from snnexp.config import check_objective, checked, conf_dir, listed


@hydra.main(config_path=conf_dir(), config_name="config", version_base="1.3")
def run(cfg: DictConfig) -> float | list[float] | None:
    config = checked(cfg)
    check_objective(config["objective"])
    from snnexp.build import build  # torch comes in from here on: after all that can be refused without it
    from snnexp.session import Session

    hydra_config = HydraConfig.get()
    choices = {group: str(option) for group, option in hydra_config.runtime.choices.items() if option is not None}
    session = Session(config, choices, Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task))
    task = build("task", config)
    try:
        return objective(config["objective"], task(session))
    finally:
        if session.new_dir.is_dir() and not any(session.new_dir.iterdir()):
            session.new_dir.rmdir()  # Hydra makes it before anyone knows whether there is something to write


def objective(names: str | list[str] | None, result: dict[str, float]) -> float | list[float] | None:
    """The objective's value (a list for several) in a task's `result`; None if the task gave no such metric."""
    if names is None or not set(listed(names)) <= set(result):
        return None
    return result[names] if isinstance(names, str) else [result[name] for name in names]


def main() -> None:
    """Console entry point: exit status 0, 1 after an error, 130 after Ctrl-C."""
    os.environ.setdefault("LOGURU_LEVEL", "WARNING")  # SpikingJelly announces its choices at import
    try:
        run()
    except KeyboardInterrupt:
        close_grid("KILLED")
        leave(130)
    finally:
        close_grid("FAILED")


def leave(code: int) -> None:
    """End now: a sweep's threads would be waited for until their jobs are done, which go on without us."""
    if any(not t.daemon and t is not threading.current_thread() for t in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""A small program with our sweeper, for tests: a parabola instead of a training, which can be told to misbehave."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from snnexp.errors import Pruned
from snnexp.run import leave
from snnexp.trial.reporter import prune

ConfigStore.instance().store(
    name="app",
    node={
        "defaults": ["_self_", {"override hydra/sweeper": "snnexp"}],
        "x": 1.0,
        "y": 0.0,
        "kind": "plain",
        "text": None,
        "seed": 0,
        "seconds": 0.0,
        "epochs": 0,
        "objective": "val/value",
        "outputs_dir": "outputs",
        "data_dir": "data",
        "cache_dir": "cache",
        "tracking": {"_target_": "snnexp.tracking.Nothing"},
        "hydra": {
            "output_subdir": None,
            "sweep": {"dir": "${outputs_dir}/multirun/${now:%H-%M-%S-%f}", "subdir": "${hydra.job.num}"},
        },
    },
)


@hydra.main(version_base="1.3", config_name="app", config_path=None)
def app(config: DictConfig) -> float | list[float]:
    with (Path(config.outputs_dir) / "calls.txt").open("a") as file:
        file.write(f"{config.x!r} {config.kind} {config.text!r}\n")
    marker = Path(config.outputs_dir) / "misbehaved"
    if config.kind == "exit":
        sys.exit(3)
    if config.kind == "kill" or (config.kind == "kill_once" and not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.kind == "raise":
        raise RuntimeError("broken")
    value = -((config.x - 2) ** 2) - config.y
    history: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        time.sleep(config.seconds)
        history.append({"val/value": value + epoch})
        if prune(history):
            raise Pruned
    time.sleep(config.seconds)
    return value if isinstance(config.objective, str) else [value, config.x]


if __name__ == "__main__":
    try:
        app()
    except KeyboardInterrupt:
        leave(130)

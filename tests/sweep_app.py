"""A small program with our sweeper, for tests: a parabola instead of a training, which can be told to misbehave."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from snnexp.errors import Pruned, explained
from snnexp.run import leave
from snnexp.trial.reporter import prune
from waiting import until

ConfigStore.instance().store(
    name="app",
    node={
        "defaults": ["_self_", {"override hydra/sweeper": "snnexp"}],
        "x": 1.0,
        "y": 0.0,
        "kind": "plain",
        "text": None,
        "seed": 0,
        "noise": 0.0,  # how much the value grows with the seed
        "meet": 0,  # each call waits until there have been so many
        "hold": None,  # the number of the first call that waits until there is a file "go"
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


@hydra.main(version_base="1.3", config_name="app", config_path=str(Path(__file__).parent))
def app(config: DictConfig) -> float | list[float]:
    outputs = Path(config.outputs_dir)
    with (outputs / "calls.txt").open("a") as file:
        file.write(f"{config.x!r} {config.kind} {config.text!r}\n")
    (outputs / f"gpu-{os.environ.get('CUDA_VISIBLE_DEVICES')}-{os.getpid()}").touch()
    number = calls(outputs)
    marker = outputs / "misbehaved"
    if config.kind == "exit":
        sys.exit(3)
    if config.kind == "kill" or (config.kind == "kill_once" and not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.kind == "raise":
        raise RuntimeError("broken")
    if config.kind == "full" and not (outputs / "room").exists():
        raise explained(OSError(28, "No space left on device")) or AssertionError
    value = -((config.x - 2) ** 2) - config.y + config.noise * config.seed
    history: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        history.append({"val/value": value + epoch, "val/other": config.x})
        if prune(history):
            raise Pruned
    until(lambda: calls(outputs) >= config.meet, "other calls")
    if config.hold is not None and number >= config.hold:
        until((outputs / "go").exists, "the test to let go", patience=600)
    return value if isinstance(config.objective, str) else [value, config.x]


def calls(outputs: Path) -> int:
    """Return how often the program was called in all processes."""
    file = outputs / "calls.txt"
    return len(file.read_text().splitlines()) if file.exists() else 0


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:
        leave(130)


if __name__ == "__main__":
    main()

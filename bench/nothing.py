"""A Hydra program with snnexp's configs whose jobs do nothing, for bench/sweep_overhead.py.

Each call appends the time and the processor time used so far to the file $STARTS.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

CONF = str(Path(__file__).resolve().parents[1] / "conf")


def mark() -> None:
    with Path(os.environ["STARTS"]).open("a") as file:
        file.write(f"{time.time()!r} {time.process_time()!r}\n")


@hydra.main(config_path=CONF, config_name="config", version_base="1.3")
def program(config: DictConfig) -> float:
    mark()
    return 0.5


if __name__ == "__main__":
    OmegaConf.register_new_resolver("folder", os.path.abspath, replace=True)
    program()

"""Time commands that need no torch (`--help`, wrong values) against a Hydra application that does nothing.

    python bench/startup.py [--rounds 7]

The peer composes the same config. The commands take turns. Prints medians in seconds, and differences to the peer.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from snnexp.config import conf_dir

BARE = """
import hydra
from omegaconf import OmegaConf
OmegaConf.register_new_resolver("folder", str, replace=True)
@hydra.main(config_path={conf!r}, config_name="config", version_base="1.3")
def main(cfg): pass
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE.format(conf=conf_dir()))
        ours = [sys.executable, "-m", "snnexp"]
        commands = {
            "bare Hydra --help": [sys.executable, str(bare), "--help"],
            "import snnexp": [sys.executable, "-c", "import snnexp"],
            "snnexp --help": [*ours, "--help"],
            "snnexp neuron=nope": [*ours, "neuron=nope"],
            "snnexp trainer.epochs=x": [*ours, "trainer.epochs=x"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds + 1):
            for name, command in commands.items():
                begin = time.perf_counter()
                subprocess.run(command, cwd=folder, capture_output=True, check=False)
                times[name].append(time.perf_counter() - begin)
    peer = statistics.median(times["bare Hydra --help"][1:])
    for name, seconds in times.items():
        median = statistics.median(seconds[1:])
        print(f"{name:26} {median:.2f} s   {median - peer:+.2f} s")


if __name__ == "__main__":
    main()

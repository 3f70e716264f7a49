"""What happens around Hydra's jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Outputs(Callback):
    """Makes sure that `outputs_dir` can be written, before Hydra makes its directories there (with a traceback)."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if not isinstance(config.outputs_dir, str):
            print(f"outputs_dir={config.outputs_dir} is not allowed: it must be the path of a folder", file=sys.stderr)
            sys.exit(1)
        folder = Path(config.outputs_dir).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            # Hydra turns a callback's exceptions into warnings, an exit it lets pass
            print(f"cannot write to outputs_dir={folder}: {error.strerror}", file=sys.stderr)
            sys.exit(1)

    on_multirun_start = on_run_start

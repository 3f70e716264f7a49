"""Commands for the user to copy: they run as printed, from any folder and with the user's own configuration files."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from snnexp.config import conf_dir, quoted
from snnexp.masking import masked
from snnexp.trial.job import VARIABLE


def command(arguments: Sequence[str]) -> str:
    """Return `snnexp ARGUMENTS` as a line for a shell, with the folder and the environment of this process.

    Relative paths in the configuration, and packages found by PYTHONPATH, are looked up from that folder.
    """
    names = sorted(name for name in os.environ if name == "PYTHONPATH" or name.startswith("SNNEXP_"))
    kept = [f"{name}={shlex.quote(os.environ[name])}" for name in names if name != VARIABLE]
    line = " ".join([*kept, shlex.join(["snnexp", *masked(list(arguments))])])
    return f"(cd {shlex.quote(str(Path.cwd()))} && {line})"


def experiment_command(config: DictConfig, folder: Path, name: str) -> str:
    """Return the command that runs FOLDER/experiment/NAME.yaml with the configuration files of this sweep.

    `config` is the config of the multirun. FOLDER comes first, so a file of the same name elsewhere does not hide it.
    """
    arguments, own = ["--config-dir", str(folder)], []
    for source in config.hydra.runtime.config_sources:
        if source.provider == "main" and Path(str(source.path)) != Path(conf_dir()):
            arguments += ["--config-path", str(source.path)]
        if source.provider == "command-line" or source.provider.startswith("hydra.searchpath"):
            own.append(f"{source.schema}://{source.path}")
    if config.hydra.job.config_name != "config":
        arguments += ["--config-name", str(config.hydra.job.config_name)]
    plain = ",".join(path if re.fullmatch(r"[\w:/.-]+", path) else quoted(path) for path in own)
    arguments += [f"hydra.searchpath=[{plain}]"] * bool(own)
    return command([*arguments, f"experiment={name}"])

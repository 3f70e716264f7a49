"""The text about an experiment in a report, besides its numbers: `labs/<experiment>.yaml`."""

from dataclasses import dataclass
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class Lab:
    """`question`: what is asked; `set_up`: what is run on which data. Plain sentences, `code` in backticks."""

    title: str
    question: str = ""
    set_up: str = ""


def lab(experiment: str) -> Lab:
    """Return the texts of the experiment; without a file of its own, its name is the title."""
    file = files("snnexp.report") / "labs" / f"{experiment}.yaml"
    known = "/" not in experiment and file.is_file()
    return Lab(**yaml.safe_load(file.read_text(encoding="utf-8"))) if known else Lab(experiment)

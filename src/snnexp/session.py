"""What a task gets: the run's settings, its parts, made from the config when they are asked for, and its record."""

from __future__ import annotations

import errno
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from snnexp.build import accepted, build
from snnexp.checkpoint import load_into
from snnexp.config import RUN, flatten, listed
from snnexp.dataset.base import Data
from snnexp.dataset.prepare import prepared_once
from snnexp.errors import InvalidValue, Pruned, UserError, integer
from snnexp.rundir import RunDir, write_json
from snnexp.terminal import closing_table
from snnexp.timefold import Normalize, TimeFold, TimeMean
from snnexp.tracking import WEIGHTS, Status, Tracker
from snnexp.training import METRICS, Metrics, Trainer
from snnexp.trial.job import Job

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
TAGS = ("task", "model", "dataset", "neuron", "surrogate", "conversion", "calibration", "mitigation")
CONVERTING = ("convert", "calibrate", "dynamics", "unevenness", "mitigations", "few_spike")  # with those three
ALONE = ("fit_few_spike",)  # tasks without a network


@dataclass
class Session:
    """One run. `config` is the resolved config as plain containers, `choices` the option chosen of each group,
    `run_dir` is where everything is written, `overrides` the command line.

    Picklable, so that data-parallel ranks can be spawned with it.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    run_dir: Path
    overrides: list[str] = field(default_factory=list)
    tracker: Tracker = field(init=False)
    new_dir: Path = field(init=False)  # what Hydra made for this run; with `resume`, `run_dir` is another
    job: Job | None = field(default_factory=Job.current)  # of a sweep

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "data"}  # mapped anew, not copied

    def __post_init__(self) -> None:
        self.new_dir = self.run_dir
        if self.job and self.job.trial:  # its record is its own, even if an earlier trial had the same values
            self.config = self.config | {"resume": False}
        self.tracker = build("tracking", self.config)

    def tracked(self, work: Callable[[], Metrics]) -> Metrics:
        """Do `work` as a run: in a run directory (with `resume`, an earlier one), under the tracker, its result kept.

        A run that is already finished is not repeated: its result is returned. However `work` ends, tracker and run
        directory say so; an interruption says how to go on.
        """
        with RunDir.open(self.run_dir, self.config) as folder:
            self.run_dir = folder.path
            if self.job:
                job = {"overrides": self.overrides, "varied": self._variation, "name": self.name}
                write_json(self.new_dir / "job.json", job | {"folder": str(folder.path)})
            if folder.finished:
                return self._close(folder.result(), "this run was already finished (resume=false starts anew)")
            return self._close(self._performed(work, folder), self.tracker.place)

    def _performed(self, work: Callable[[], Metrics], folder: RunDir) -> Metrics:
        status: Status = "FAILED"
        try:
            OmegaConf.save(OmegaConf.create(self.config), folder.path / "config.yaml")
            folder.status = "RUNNING"
            parent = self.job.parent if self.job else None
            self.tracker.start(folder.path, self.name, flatten(self.config), self._tags(), parent)
            self.tracker.artifact(folder.path / "config.yaml")
            result = work()
            write_json(folder.path / "result.json", result)
            status = "FINISHED"
        except Pruned:
            status = "PRUNED"
            raise
        except KeyboardInterrupt:
            status = "KILLED"
            again = [argument for argument in sys.argv[1:] if not argument.startswith("resume=")]
            again += [] if self.job and self.job.trial else ["resume=true"]
            print(f"\ninterrupted; go on with: {shlex.join(['snnexp', *again])}", file=sys.stderr)
            raise
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise UserError(
                f"cannot write to {folder.path}: {error.strerror}; make room, then go on with resume=true"
            ) from error
        finally:
            with suppress(OSError):  # on a full disk these fail as well: the first error is the one to tell
                self.tracker.finish(status)
            with suppress(OSError):
                folder.status = status
        return result

    @property
    def name(self) -> str:
        if self.job:
            return self.job.name or " ".join(f"{key}={value}" for key, value in self._variation.items())
        made = self._choices()
        named = [made[g] for g in TAGS if g in made and g != "task" and made[g] != "none"]
        return "-".join([*(named or [self.config["activation"]]), f"s{self.seed}"])

    def _choices(self) -> dict[str, str]:
        """The option of each group in TAGS that has a part in the run: an activation takes no surrogate."""
        spiking = self.config["surrogate"]["_target_"] in flatten(self.config["neuron"]).values()
        absent = {"surrogate"} if not spiking else set()
        if self.choices["task"] not in CONVERTING:
            absent |= {"conversion", "calibration", "mitigation"}
        if self.choices["task"] in ALONE:
            absent |= {"model", "dataset", "neuron", "surrogate"}
        made = {g: self.choices[g] for g in TAGS if self.choices.get(g) and g not in absent}
        if made.get("calibration") == "none" and (steps := self.config["calibration"]["steps"]):
            made["calibration"] = "+".join(steps)
        return made

    def _tags(self) -> dict[str, str]:
        tags = self._choices() | (dict(self.job.tags) if self.job else {})
        checkout = Path(__file__).resolve().parents[2]
        if not (checkout / ".git").exists():  # installed from a wheel
            return tags | {"version": version("snnexp")}
        with suppress(OSError, subprocess.CalledProcessError):  # no git here
            git = subprocess.run(
                ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
            )
            tags["git_commit"] = git.stdout.strip()
        return tags

    @property
    def quiet(self) -> bool:
        """Whether other runs write to the same terminal."""
        return self.job is not None and self.job.quiet

    @property
    def _variation(self) -> dict[str, str]:
        return self.job.variation(self.overrides) if self.job else {}

    def _close(self, result: Metrics, tracked: str) -> Metrics:
        if self.quiet:
            return result
        made = self._choices()
        subject = f": {made['model']} on {made['dataset']}" if "model" in made else ""
        title = f"{made['task']}{subject}, seed {self.seed}"
        shown = {name: value for name, value in result.items() if not name.startswith("val/accuracy_T")}
        closing_table(title, shown, {"results": self.run_dir, "tracked": tracked})
        return result

    @property
    def objectives(self) -> list[str]:
        """Names of the metrics that a sweep optimises."""
        return listed(self.config["objective"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @cached_property
    def trainer(self) -> Trainer:
        return build("trainer", self.config)  # type: ignore[no-any-return]

    @cached_property
    def loss(self) -> nn.Module:
        return build("loss", self.config)  # type: ignore[no-any-return]

    @property
    def neuron(self) -> Callable[[], nn.Module]:
        """Makes a fresh neuron, with a surrogate of its own, per call."""
        return partial(build, "neuron", self.config)

    def optimizer(self, parameters: Any) -> Optimizer:
        return self._made("optimizer", parameters)  # type: ignore[no-any-return]

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        return self._made("scheduler", optimizer)  # type: ignore[no-any-return]

    @cached_property
    def data(self) -> Data:
        """The dataset, prepared if it is not yet. Raises UserError if it is missing."""
        return build("dataset", self.config)  # type: ignore[no-any-return]

    def network(self) -> TimeFold:
        """A network for the dataset: its weights are those of `checkpoint`, or a function of the seed.

        Raises UserError if it cannot be made, does not take the dataset's input, or the checkpoint does not fit.
        """
        data = self.data
        steps = data.train.x.shape[1] if data.temporal else self.config["timesteps"]
        if steps != self.config["timesteps"]:
            raise UserError(
                f"timesteps={self.config['timesteps']} but the dataset gives {steps} steps: set timesteps alone"
            )
        torch.manual_seed(self.seed)
        offered = {"shape": data.shape, "classes": len(data.classes), "neuron": self.neuron}
        net = build("model", self.config, **accepted(self.config["model"], offered))
        if not isinstance(net, nn.Module):
            raise UserError(
                f"model ({self.config['model']['_target_']}) must give a torch module, not a {type(net).__name__}"
            )
        front = Normalize(*data.normalize) if data.normalize else TimeMean() if data.averaged else None
        folded = TimeFold(net, self.config["timesteps"], temporal=data.temporal, front=front)
        if self._checkpoint:
            load_into(folded, self._checkpoint)
        self._try(folded)
        return folded

    @cached_property
    def _checkpoint(self) -> Path | None:
        """The file of weights to start from, those of a run fetched into the cache: a finished run does not change."""
        given = self.config["checkpoint"]
        if not given or not (run := RUN.fullmatch(given)):
            return Path(given) if given else None
        folder = Path(self.config["cache_dir"]) / "weights" / run[1]
        return prepared_once(folder, lambda to: self.tracker.weights(run[1], to)) / WEIGHTS

    def _try(self, net: TimeFold) -> None:
        """Show the network one sample, so that what does not fit together is told before anything is trained."""
        data = self.data
        model, wanted = self.config["model"]["_target_"], len(data.classes)
        x, _ = next(data.val.batches(1))
        try:
            with torch.no_grad():
                answer = tuple(net.eval()(x).shape)
        except InvalidValue:
            raise
        except Exception as error:  # the network may be anybody's
            raise UserError(f"model ({model}) cannot take {data.name}'s input {tuple(data.shape)}: {error}") from error
        if answer != (net.T, 1, wanted):
            raise UserError(
                f"model ({model}) must answer with one number for each of {data.name}'s {wanted} classes; "
                f"its output for one sample is {answer[1:]}"
            )
        net.train()

    def check(self, objectives: Sequence[str] = METRICS) -> None:
        """Refuse wrong values now, before any data is prepared; `objectives` are the validation metrics that the task
        gives. Raises UserError.
        """
        try:
            integer("seed", self.config["seed"], at_least=0)
            integer("timesteps", self.config["timesteps"], at_least=1)
        except InvalidValue as error:
            raise error.told(error.name) from error
        for name in self.objectives:
            if name not in objectives:
                raise UserError(f"objective={name} is not allowed: it must be one of {', '.join(objectives)}")
        RunDir.check(self.config)
        _ = self.trainer, self.loss, self.neuron()
        self.tracker.check()
        self.scheduler(self.optimizer([nn.Parameter(torch.zeros(1))]))

    def _made(self, group: str, argument: Any) -> Any:
        try:
            return build(group, self.config)(argument)
        except (TypeError, ValueError) as error:
            raise UserError(f"{group}: {error}") from error

"""The parts of a run, made from its config when they are first needed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from snnexp.build import accepted, build
from snnexp.checkpoint import load_into
from snnexp.config import RUN, listed
from snnexp.dataset.base import Data
from snnexp.dataset.prepare import prepared_once
from snnexp.errors import InvalidValue, UserError, integer, told
from snnexp.finite import nonfinite
from snnexp.timefold import Normalize, TimeFold, TimeMean
from snnexp.tracking import WEIGHTS, Tracker
from snnexp.training import Trainer


@dataclass
class Session:
    """The settings of one run and the parts made from them.

    `config` is the resolved config as plain containers, `choices` the option chosen of each group. Picklable, so that
    data-parallel ranks can be spawned with it.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    _loaded: dict[str, Data] = field(default_factory=dict, repr=False)  # by dataset config; shared by derived sessions

    def __getstate__(self) -> dict[str, Any]:
        own = {key: value for key, value in self.__dict__.items() if key != "data"}
        return own | {"_loaded": {}}  # each process maps the data itself

    def derived(self, **changes: Any) -> Session:
        """Return a session with other values for some top-level keys of the config."""
        return Session(self.config | changes, self.choices, self._loaded)

    @property
    def objectives(self) -> list[str]:
        """The metrics that a sweep optimises."""
        return listed(self.config["objective"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @cached_property
    def tracker(self) -> Tracker:
        return build("tracking", self.config, Tracker)  # type: ignore[no-any-return]

    @cached_property
    def trainer(self) -> Trainer:
        return build("trainer", self.config, Trainer)  # type: ignore[no-any-return]

    @cached_property
    def loss(self) -> nn.Module:
        return build("loss", self.config, nn.Module)  # type: ignore[no-any-return]

    @property
    def neuron(self) -> Callable[[], nn.Module]:
        """A factory of neurons, each with a surrogate of its own."""
        return partial(build, "neuron", self.config, nn.Module)

    def optimizer(self, parameters: Any) -> Optimizer:
        return self._called("optimizer", parameters)  # type: ignore[no-any-return]

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        return self._called("scheduler", optimizer)  # type: ignore[no-any-return]

    def _called(self, group: str, argument: Any) -> Any:
        try:
            return build(group, self.config)(argument)
        except (TypeError, ValueError) as error:
            raise UserError(f"{group}: {error}") from error

    @cached_property
    def data(self) -> Data:
        """The dataset, prepared first where necessary. Raises UserError if it is missing."""
        key = json.dumps(self.config["dataset"], sort_keys=True, default=str)
        if key not in self._loaded:
            self._loaded[key] = build("dataset", self.config, Data)
        return self._loaded[key]

    @property
    def prepared(self) -> dict[str, Any] | None:
        """The identity of the first dataset that this session, or one derived from it, has loaded; None before that."""
        return next((data.identity for data in self._loaded.values()), None)

    def network(self) -> TimeFold:
        """Return a network for the dataset, with the weights of `checkpoint` or initial weights drawn by the seed.

        Raises UserError if it cannot be made, does not take the dataset's input, or the checkpoint does not fit.
        """
        data = self.data
        steps = data.train.x.shape[1] if data.temporal else self.config["timesteps"]
        if steps != self.config["timesteps"]:
            given = f"timesteps={self.config['timesteps']}"
            raise UserError(f"{given} but the dataset gives {steps} steps: set timesteps alone")
        torch.manual_seed(self.seed)
        offered = {"shape": data.shape, "classes": len(data.classes), "neuron": self.neuron}
        net = self._made(offered)
        front = Normalize(*data.normalize) if data.normalize else TimeMean() if data.averaged else None
        folded = TimeFold(net, self.config["timesteps"], temporal=data.temporal, front=front)
        if self._checkpoint:
            load_into(folded, self._checkpoint)
        self._try(folded)
        return folded

    def _made(self, offered: Mapping[str, Any]) -> nn.Module:
        model = self.config["model"]
        try:
            return build("model", self.config, nn.Module, **accepted(model, offered))  # type: ignore[no-any-return]
        except (RuntimeError, MemoryError, TypeError) as error:
            if not re.search("memory|overflow", str(error), re.IGNORECASE):
                raise
            raise UserError(
                f"model ({model['_target_']}) is larger than the memory of this machine: choose smaller numbers among "
                f"{', '.join(f'model.{k}={v}' for k, v in model.items() if k != '_target_')}"
            ) from error

    @cached_property
    def _checkpoint(self) -> Path | None:
        """The file of weights to start from. Those of an MLflow run are fetched into the cache."""
        given = self.config["checkpoint"]
        if not given or not (run := RUN.fullmatch(given)):
            return Path(given) if given else None
        folder = Path(self.config["cache_dir"]) / "weights" / run[1]
        return prepared_once(folder, lambda to: self.tracker.weights(run[1], to)) / WEIGHTS

    def _try(self, net: TimeFold) -> None:
        """Show the network one sample, so that parts that do not fit are refused before training starts."""
        data = self.data
        model, wanted = self.config["model"]["_target_"], len(data.classes)
        x, _ = next(data.val.batches(1))
        try:
            with torch.no_grad():
                answer = tuple(net.eval()(x).shape)
        except InvalidValue:
            raise
        except Exception as error:  # a user's own network may raise anything
            raise UserError(f"model ({model}) cannot take {data.name}'s input {tuple(data.shape)}: {error}") from error
        if answer != (net.T, 1, wanted):
            needs = f"must answer with one number for each of {data.name}'s {wanted} classes"
            raise UserError(f"model ({model}) {needs}; its output for one sample is {answer[1:]}")
        if bad := nonfinite(dict(net.network.named_parameters())):
            raise UserError(f"model ({model}) gives weights that are NaN or infinite: {', '.join(bad[:3])}")
        net.train()

    def check(self) -> None:
        """Refuse wrong values before any data is prepared. Raises UserError."""
        with told():
            integer("seed", self.config["seed"], at_least=0)
            integer("timesteps", self.config["timesteps"], at_least=1)
        _ = self.trainer, self.loss, self.neuron()
        self.scheduler(self.optimizer([nn.Parameter(torch.zeros(1))]))

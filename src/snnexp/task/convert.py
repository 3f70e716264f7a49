"""`task=convert`: a trained ANN becomes an SNN, tested at every T asked for beside the ANN."""

from __future__ import annotations

import csv
import fcntl
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from snnexp.analysis import figures, tables
from snnexp.build import build
from snnexp.calibration.base import Calibration
from snnexp.conversion.frames import PerFrame, stills
from snnexp.conversion.measure import LayerError, accuracies, ann_accuracy, columns, spread
from snnexp.conversion.network import Converted, converted
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.walk import Method, Record, walk
from snnexp.dataset.prepare import digest
from snnexp.errors import InvalidValue, UserError, integer
from snnexp.mitigation.base import Mitigation
from snnexp.rundir import write_json
from snnexp.session import Session
from snnexp.task.train import fit
from snnexp.terminal import LayerBar
from snnexp.timefold import TimeFold
from snnexp.training import THREADS, Metrics, launched

ANN = ("dataset", "model", "neuron", "loss", "optimizer", "scheduler", "trainer", "seed")  # what determines an ANN


def convert(session: Session, val_images: int | None, test_images: int | None, layer_images: int) -> Metrics:
    """Place the neurons of `conversion` in the ANN; returns accuracies, spikes and energy.

    Raises UserError for wrong values, missing data, and networks that cannot be converted faithfully.
    """
    if session.config["calibration"]["steps"]:
        raise UserError(
            "task=convert places neurons and corrects nothing: "
            f"calibration={session.choices['calibration']} belongs to task=calibrate"
        )
    return Conversion(session, val_images, test_images, layer_images).run()


class Conversion:
    """An ANN on its way to being an SNN: everything is checked when it is made. `run` is `task=convert` and
    `task=calibrate`; other tasks take an SNN apart that they have from `converted`."""

    def __init__(self, session: Session, val_images: int | None, test_images: int | None, layer_images: int) -> None:
        try:
            for name, images in (("val_images", val_images), ("test_images", test_images)):
                if images is not None:
                    integer(name, images, at_least=1)
            self.layer_images = integer("layer_images", layer_images, at_least=1)
        except InvalidValue as error:
            raise error.told(f"task.{error.name}") from error
        self.session, self.val_images, self.test_images = session, val_images, test_images
        self.steps = _steps(session.config["timesteps"])
        ann = session.config | {"timesteps": session.config["dataset"].get("timesteps", 1)}  # of recordings: the frames
        self.source = Session(ann, session.choices, session.run_dir)
        self.source.check(["val/accuracy", "val/ann_accuracy", *(f"val/snn_accuracy_T{t}" for t in self.steps)])
        self.method: Method = build("conversion", session.config)
        self.calibration: Calibration = build("calibration", session.config)
        self.mitigation: Mitigation = build("mitigation", session.config)
        self._check_network()

    def run(self) -> Metrics:
        return self.session.tracked(self._measured)

    def _check_network(self) -> None:
        """Convert the untrained network for two images: what cannot be converted is told before anything is trained."""
        data, net = self.source.data, self.source.network()
        if net.sites():
            raise UserError(
                f"neuron={self.session.choices['neuron']} spikes already: conversion starts from an ANN "
                "(neuron=relu, clip or qcfs)"
            )
        try:
            self.images = self.calibration.sample(data.train)
        except InvalidValue as error:
            raise error.told(f"calibration.{error.name}") from error
        self._check_frames()
        if data.temporal:  # each frame is an image; of each recording one calibrates, in turn
            turn = torch.arange(len(self.images))
            self.images = self.images[turn, turn % self.images.shape[1]].float()
        x = self.images[:2]
        for T in [1] if self.method.neuron.stepwise else self.steps:
            source, network = rewrite(still(net), x, self.method.maxpool, self.method.neuron.vocabulary)
            walk(source, network, x, T, self.method)
            self.mitigation.applied(converted(network, T))
        try:
            for t in self.steps:
                self.mitigation.check(t)
        except InvalidValue as error:
            raise error.told(f"mitigation.{error.name}") from error

    def integrating(self, what: str) -> None:
        """Raises UserError unless the conversion places integrate-and-fire neurons."""
        if not self.method.neuron.integrates:
            raise UserError(
                f"{what} takes integrate-and-fire neurons: choose another conversion than "
                f"conversion={self.session.choices['conversion']}"
            )

    @property
    def frames(self) -> int:
        """Of a recording that is averaged for the ANN and shown to the SNN frame by frame; else 1."""
        data = self.source.data
        return data.train.x.shape[1] if data.averaged else 1

    def _check_frames(self) -> None:
        """Raises UserError unless the recording that is seen frame by frame is seen whole."""
        for t in [steps[-1] for steps in self.groups()]:
            if t % self.frames:
                raise UserError(
                    f"timesteps={t} is not allowed: the network is shown the {self.frames} frames of a "
                    f"recording one after the other, so T must be a multiple of {self.frames} (only "
                    "conversions that are one network for all T may stop before, at a smaller T of a list)"
                )

    def _whole(self, network: nn.Module) -> Any:
        """`network`, which takes images or averaged recordings, for what a split holds."""
        return PerFrame(network) if self.source.data.temporal else network

    def prepare(self) -> Metrics:
        """Get the ANN, trained if need be, onto the device; its accuracies."""
        session, data = self.session, self.source.data
        torch.set_num_threads(session.trainer.threads or THREADS)
        fabric = session.trainer.fabric()
        self.device = fabric.device
        checkpoint = session.config["checkpoint"] or trained(self.source)
        net = Session(self.source.config | {"checkpoint": str(checkpoint)}, session.choices, session.run_dir).network()
        self.ann = still(net).eval().to(self.device)
        self.images = self.images.to(self.device)
        self.splits = {"val": (data.val, self.val_images), "test": (data.test, self.test_images)}
        size = session.trainer.eval_batch_size
        return {
            f"{split}/ann_accuracy": ann_accuracy(self._whole(self.ann), part, size, self.device, images)
            for split, (part, images) in self.splits.items()
        }

    def _measured(self) -> Metrics:
        result = self.prepare()
        layers: list[LayerError] = []
        done: list[dict[str, Any]] = []
        for steps in self.groups():
            if self.calibration.steps:
                plain, _, _ = self.converted(steps[-1], calibrated=False)
                result |= self.accuracies(plain, steps, "plain")
            snn, source, records = self.converted(steps[-1], calibrated=True)
            result |= self.accuracies(snn, steps, "snn")
            for t in steps:
                result |= self.examined(source, snn, t, layers)
            done += [{"T": steps[-1], **asdict(record)} for record in records]
            torch.save(snn.cpu(), self.session.run_dir / f"model_T{steps[-1]}.pt")
            if made := snn.tables():
                tables.write({f"{name}_T{snn.T}": rows for name, rows in made.items()}, self.session.run_dir / "tables")
                self.session.tracker.artifact(self.session.run_dir / "tables")
        result["val/accuracy"] = result[f"val/snn_accuracy_T{self.steps[-1]}"]  # the default objective
        self._report(result, layers, done)
        return result

    def groups(self) -> Iterator[list[int]]:
        """The T's that one network serves: all, unless what is placed depends on T."""
        if self.method.per_T or self.calibration.steps:
            yield from ([t] for t in self.steps)
        else:
            yield self.steps

    def converted(self, T: int, *, calibrated: bool) -> tuple[Converted, torch.fx.GraphModule, list[Record]]:
        """(the SNN, with its mitigation; its source; what was done) for T steps."""
        corrections = self.calibration.corrections if calibrated else []
        source, network = rewrite(self.ann, self.images[:2], self.method.maxpool, self.method.neuron.vocabulary)
        with LayerBar(f"{self.session.choices['task']} T={T}{'' if calibrated else ' (before)'}") as bar:
            records = walk(source, network, self.images, T, self.method, corrections, bar.report)
        return self.mitigation.applied(converted(network, T)), source, records

    def accuracy(self, snn: Converted, split: str, steps: Sequence[int]) -> dict[int, float]:
        """Accuracy on a split at each of `steps`."""
        data, images = self.splits[split]
        return accuracies(self._whole(snn), data, steps, self.session.trainer.eval_batch_size, self.device, images)

    def accuracies(self, snn: Converted, steps: Sequence[int], what: str) -> Metrics:
        """Accuracy at each of `steps` on both splits, logged with step = T."""
        found = {}
        for split in self.splits:
            for t, accuracy in self.accuracy(snn, split, steps).items():
                self.session.tracker.metrics({f"{split}/{what}_accuracy": accuracy}, step=t)
                found[f"{split}/{what}_accuracy_T{t}"] = accuracy
        return found

    def seen(self) -> Tensor:
        """The validation images of the table by layer."""
        val = self.source.data.val
        x, _ = next(val.batches(self.layer_images, spread(val, self.layer_images)))
        return (stills(x) if self.source.data.temporal else x).to(self.device)

    def examined(self, source: torch.fx.GraphModule, snn: Converted, t: int, layers: list[LayerError]) -> Metrics:
        """Errors by layer, added to `layers`, and the cost of an inference, on validation images."""
        data = self.source.data
        runs = data.val.x.shape[1] if data.temporal else 1  # of the network a recording
        x = self.seen()
        errors, account = snn.examine(source, x, t)
        layers += errors
        cost = {
            "spikes": account.spikes * runs,
            "spikes_per_neuron": account.spikes_per_neuron * runs,
            "synaptic_operations": account.synaptic_operations * runs,
            "energy_nj": account.energy_nj * runs,
            "latency": account.latency * runs,
            **account.more,
        }
        self.session.tracker.metrics({f"val/{name}": value for name, value in cost.items()}, step=t)
        return {f"val/{name}_T{t}": value for name, value in cost.items()} | {
            "neurons": account.neurons,
            "val/ann_macs": account.ann_macs * runs,
            "val/ann_energy_nj": account.ann_energy_nj * runs,
        }

    def _report(self, result: Metrics, layers: Sequence[LayerError], done: list[dict[str, Any]]) -> None:
        session, folder = self.session, self.session.run_dir
        session.tracker.metrics({k: v for k, v in result.items() if "_T" not in k}, step=self.steps[-1])
        with (folder / "layers.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, columns())
            table.writeheader()
            table.writerows(asdict(layer) for layer in layers)
        write_json(folder / "corrections.json", done)
        session.tracker.artifact(folder / "layers.csv")
        session.tracker.artifact(folder / "corrections.json")
        longest = self.steps[-1]
        last = [layer for layer in layers if longest == layer.T]
        curves = {
            label: {t: result[f"test/{what}_accuracy_T{t}"] for t in self.steps}
            for label, what in (("before calibration", "plain"), ("SNN", "snn"))
            if f"test/{what}_accuracy_T{longest}" in result
        }
        figures.write(
            {
                "accuracy": figures.accuracy_against_t(curves, result["test/ann_accuracy"]),
                "layers": figures.layers(last),
            },
            folder / "figures",
        )
        session.tracker.artifact(folder / "figures")
        session.tracker.model(folder / f"model_T{longest}.pt")


def _steps(timesteps: object) -> list[int]:
    """`timesteps`, a number or a list, in increasing order, each once."""
    given = timesteps if isinstance(timesteps, list) else [timesteps]
    try:
        if not given:
            raise InvalidValue("timesteps", given, "an integer >= 1, or a list of them")
        return sorted({integer("timesteps", t, at_least=1) for t in given})
    except InvalidValue as error:
        raise error.told("timesteps") from error


def still(net: TimeFold) -> nn.Module:
    """A network without time as a module from [N, ...] to [N, K]."""
    return nn.Sequential(OrderedDict(front=net.front, network=net.network))


def trained(session: Session) -> Path:
    """Weights of the ANN of this config: trained once, then found again, whatever is converted how often.

    An interrupted training is taken up; a second process that wants the same waits.
    """
    data = session.data
    seen = [len(data.train), len(data.val), data.shape, data.classes, data.normalize]  # other images in the same place
    key = digest(config={key: session.config[key] for key in ANN}, data=seen)
    folder = Path(session.config["cache_dir"]) / "ann" / key
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            launched(session.trainer, _fitted, session, folder)
            (folder / "done").touch()
    return folder / "best.pt"


def _fitted(fabric: Fabric, session: Session, folder: Path) -> float:
    torch.set_num_threads(session.trainer.threads or THREADS)
    best = fit(fabric, session, session.network(), folder).best
    return best["val/accuracy"] if best else math.nan

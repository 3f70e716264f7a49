"""The base class of tasks that convert an ANN, and the conversion that they use."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from torch import Tensor, fx, nn

from snnexp.analysis.style import GREY, panels, styles
from snnexp.build import build
from snnexp.calibration.base import Calibration
from snnexp.conversion.frames import PerFrame, stills
from snnexp.conversion.measure import Account, LayerError, accuracies, ann_accuracy, spread
from snnexp.conversion.network import Converted, converted
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.walk import LayerRecord, Method, walk
from snnexp.dataset.manifest import MANIFEST, emptied, fault, seal
from snnexp.dataset.prepare import digest
from snnexp.errors import UserError, integer, integer_or_none, require, told
from snnexp.files import remove_leftovers
from snnexp.lock import locked
from snnexp.mitigation.base import Mitigation
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.base import CONVERTING, Task
from snnexp.task.train import train_network
from snnexp.terminal import LayerBar
from snnexp.timefold import TimeFold
from snnexp.training import THREADS, Metrics, launched

log = logging.getLogger(__name__)
COSTS = ("spikes", "spikes_per_neuron", "synaptic_operations", "energy_nj", "latency")  # of `Account`
ANN = ("dataset", "model", "neuron", "loss", "optimizer", "scheduler", "trainer", "seed")  # what determines an ANN


class Converting(Task):
    """A task that converts an ANN and works with the result.

    `val_images`, `test_images`: how many images of a split are evaluated (None: all); `layer_images`: how many
    validation images are used to measure errors by layer, spikes and energy. Raises InvalidValue.
    """

    groups = CONVERTING

    def __init__(self, val_images: int | None = None, test_images: int | None = None, layer_images: int = 128) -> None:
        given = {"val": val_images, "test": test_images}
        self.images = {split: integer_or_none(f"{split}_images", n, at_least=1) for split, n in given.items()}
        self.layer_images = integer("layer_images", layer_images, at_least=1)

    def objectives(self, session: Session) -> list[str]:
        return ["val/accuracy", "val/ann_accuracy", *(f"val/snn_accuracy_T{t}" for t in steps_of(session))]

    def conversion(self, session: Session, record: Record) -> Conversion:
        """Return the conversion that the config describes, checked. Raises UserError."""
        return Conversion(session, record, self.images, self.layer_images)


class Conversion:
    """The conversion of one ANN. Its constructor checks everything that can be checked before training (UserError)."""

    def __init__(self, session: Session, record: Record, limits: Mapping[str, int | None], layer_images: int) -> None:
        self.session, self.record, self.limits, self.layer_images = session, record, limits, layer_images
        self.steps = steps_of(session)
        self.source = session.derived(timesteps=session.config["dataset"].get("timesteps", 1))  # of recordings: frames
        self.source.check()
        self.method: Method = build("conversion", session.config, Method)
        self.calibration: Calibration = build("calibration", session.config, Calibration)
        self.mitigation: Mitigation = build("mitigation", session.config, Mitigation)
        self._check_network()

    def _check_network(self) -> None:
        """Convert the untrained network for two images, to refuse networks that cannot be converted before training."""
        data, net = self.source.data, self.source.network()
        if net.sites():
            ann = "conversion starts from an ANN (neuron=relu, clip or qcfs)"
            raise UserError(f"neuron={self.session.choices['neuron']} spikes already: {ann}")
        with told("calibration."):
            self.images = self.calibration.sample(data.train)
        self._check_frames()
        if data.temporal:  # each frame is an image; each recording gives one of its frames in turn
            turn = torch.arange(len(self.images))
            self.images = self.images[turn, turn % self.images.shape[1]].float()
        x = self.images[:2]
        for T in [1] if self.method.neuron.stepwise else self.steps:
            source, network = rewrite(still(net), x, self.method.maxpool, self.method.neuron.vocabulary)
            walk(source, network, x, T, self.method)
            self.mitigation.applied(converted(network, T))
        with told("mitigation."):
            for t in self.steps:
                self.mitigation.check(t)

    def _check_frames(self) -> None:
        """Raise UserError unless the largest T of each network is a multiple of the frames of a recording."""
        for t in [steps[-1] for steps in self.groups()]:
            if t % self.frames:
                raise UserError(
                    f"timesteps={t} is not allowed: the network is shown the {self.frames} frames of a "
                    f"recording one after the other, so T must be a multiple of {self.frames} (only "
                    "conversions that are one network for all T may stop before, at a smaller T of a list)"
                )

    def integrating(self, what: str) -> None:
        """Raise UserError unless the conversion places integrate-and-fire neurons."""
        if not self.method.neuron.integrates:
            other = f"choose another conversion than conversion={self.session.choices['conversion']}"
            raise UserError(f"{what} takes integrate-and-fire neurons: {other}")

    def unmitigated(self, why: str) -> None:
        """Raise UserError, with the reason `why`, if a mitigation is chosen."""
        if not self.mitigation.idle:
            raise UserError(f"{why}: choose mitigation=none")

    @property
    def frames(self) -> int:
        """The number of frames that the ANN sees averaged and the SNN one by one; 1 for other data."""
        data = self.source.data
        return data.train.x.shape[1] if data.averaged else 1

    def load_ann(self) -> None:
        """Load the ANN onto the device; train it first if there are no weights yet."""
        session, data = self.session, self.source.data
        torch.set_num_threads(session.trainer.threads or THREADS)
        self.device = session.trainer.fabric().device
        checkpoint = session.config["checkpoint"] or trained(self.source)
        self.ann = still(self.source.derived(checkpoint=str(checkpoint)).network()).eval().to(self.device)
        self.images = self.images.to(self.device)
        self.splits = {"val": data.val, "test": data.test}

    def ann_accuracies(self) -> Metrics:
        """Return the ANN's accuracy on both splits."""
        size, ann = self.session.trainer.eval_batch_size, self.whole(self.ann)
        return {
            f"{name}/ann_accuracy": ann_accuracy(ann, split, size, self.device, self.limits[name])
            for name, split in self.splits.items()
        }

    def whole(self, network: nn.Module) -> Any:
        """Return `network` as one that takes samples of a split: it is applied to each frame of a recording."""
        return PerFrame(network) if self.source.data.temporal else network

    def groups(self) -> Iterator[list[int]]:
        """Yield lists of T that share a network: one list, unless neurons or corrections depend on T."""
        if self.method.per_T or self.calibration.steps:
            yield from ([t] for t in self.steps)
        else:
            yield self.steps

    def converted(self, T: int, *, calibrated: bool) -> tuple[Converted, fx.GraphModule, list[LayerRecord]]:
        """Return the SNN for T steps with its mitigation, its source, and a record of each layer."""
        corrections = self.calibration.corrections if calibrated else []
        source, network = rewrite(self.ann, self.images[:2], self.method.maxpool, self.method.neuron.vocabulary)
        with LayerBar(f"{self.session.choices['task']} T={T}{'' if calibrated else ' (before)'}") as bar:
            records = walk(source, network, self.images, T, self.method, corrections, bar.report, self.calibration.keep)
        return self.mitigation.applied(converted(network, T)), source, records

    def accuracy(self, snn: Converted, split: str, steps: Sequence[int]) -> dict[int, float]:
        """Return the accuracy on a split after each of `steps`."""
        size = self.session.trainer.eval_batch_size
        return accuracies(self.whole(snn), self.splits[split], steps, size, self.device, self.limits[split])

    def accuracies(self, snn: Converted, steps: Sequence[int], what: str) -> Metrics:
        """Return the accuracies on both splits after each of `steps`, and log them with step = T."""
        found = {}
        for split in self.splits:
            for t, accuracy in self.accuracy(snn, split, steps).items():
                self.record.metrics({f"{split}/{what}_accuracy": accuracy}, step=t)
                found[f"{split}/{what}_accuracy_T{t}"] = accuracy
        return found

    def seen(self) -> Tensor:
        """Return the validation images on which layers are examined."""
        val = self.source.data.val
        x, _ = next(val.batches(self.layer_images, spread(val, self.layer_images)))
        return (stills(x) if self.source.data.temporal else x).to(self.device)

    def examined(self, source: fx.GraphModule, snn: Converted, t: int) -> tuple[list[LayerError], Account, Metrics]:
        """Return the errors by layer, the cost of an inference on validation images, and the cost as metrics."""
        data = self.source.data
        runs = data.val.x.shape[1] if data.temporal else 1  # of the network per recording
        errors, account = snn.examine(source, self.seen(), t)
        cost = {name: getattr(account, name) * runs for name in COSTS} | account.more
        self.record.metrics({f"val/{name}": value for name, value in cost.items()}, step=t)
        ann = {"val/ann_macs": account.ann_macs * runs, "val/ann_energy_nj": account.ann_energy_nj * runs}
        metrics = {f"val/{name}_T{t}": value for name, value in cost.items()}
        return errors, account, metrics | {"neurons": account.neurons, **ann}


def steps_of(session: Session) -> list[int]:
    """Return `timesteps`, a number or a list, as distinct numbers in increasing order. Raises UserError."""
    given = session.config["timesteps"]
    given = given if isinstance(given, list) else [given]
    with told():
        require(bool(given), "timesteps", given, "an integer >= 1, or a list of them")
        return sorted({integer("timesteps", t, at_least=1) for t in given})


def still(net: TimeFold) -> nn.Module:
    """Return a network without spiking neurons as a module from [N, ...] to [N, K], without the time axis."""
    return nn.Sequential(OrderedDict(front=net.front, network=net.network))


def trained(session: Session) -> Path:
    """Return the file with the weights of this config's ANN, which is trained once and then read from the cache.

    An interrupted training is resumed; a second process that wants the same ANN waits. If files in the cache were
    changed since, the ANN is trained again.
    """
    config = {key: session.config[key] for key in ANN}
    folder = Path(session.config["cache_dir"]) / "ann" / digest(config=config, data=session.data.identity["digest"])
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        remove_leftovers(folder)
        if wrong := fault(folder):
            if (folder / MANIFEST).exists():
                log.warning("%s is not as it was trained (%s): it is trained again", folder, wrong)
                emptied(folder)
            launched(session.trainer, _fitted, session, folder)
            (folder / "last.pt").unlink()  # resumes an interrupted training only
            seal(folder)
    return folder / "best.pt"


def _fitted(fabric: Fabric, session: Session, folder: Path) -> float:
    torch.set_num_threads(session.trainer.threads or THREADS)
    best = train_network(fabric, session, session.network(), folder).best
    return best["val/accuracy"] if best else math.nan


def accuracy_figure(curves: Mapping[str, Mapping[int, float]], ann: float) -> Figure:
    """Draw accuracy against latency: a line for each curve {T: accuracy}, and a level line for the ANN's accuracy."""
    figure, (axes,) = panels(1, 1, 6, 3.6)
    axes.axhline(ann, color=GREY, linestyle="--", label="ANN")
    for (label, curve), style in zip(curves.items(), styles(len(curves)), strict=True):
        axes.plot(list(curve), list(curve.values()), **style, label=label)
    axes.set_xscale("log", base=2)
    steps = sorted({t for curve in curves.values() for t in curve})
    axes.set_xticks(steps, [str(t) for t in steps])
    axes.set(xlabel="time steps T", ylabel="test accuracy")
    axes.legend(frameon=False)
    return figure

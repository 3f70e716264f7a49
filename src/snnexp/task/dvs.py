"""`task=dvs`: compare two kinds of QCFS conversion for event recordings with a directly trained SNN."""

import json
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from torch import Tensor, fx, nn

from snnexp.analysis.style import distinct, panels, styles
from snnexp.config import TRAINING
from snnexp.conversion.frames import PerFrame, stills
from snnexp.conversion.measure import AC, accuracies, ann_accuracy, spread
from snnexp.conversion.network import Converted
from snnexp.conversion.qcfs import QCFSConversion
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.walk import walk
from snnexp.dataset.base import Data
from snnexp.errors import InvalidValue, UserError, integer
from snnexp.evaluate import evaluate
from snnexp.record import Record
from snnexp.rundir import write_json
from snnexp.session import Session
from snnexp.task.base import Task
from snnexp.task.train import train_network
from snnexp.terminal import console
from snnexp.timefold import TimeFold, TimeMean, observed
from snnexp.training import THREADS, Metrics, launched

AVERAGE, FRAME, SEQUENCE, DIRECT = "average", "per frame", "per frame, no reset", "direct"


class DVS(Task):
    """Train the model in three ways with the same settings, for each of `seeds`, and test each once.

    `average`: the ANN sees the mean of a recording's F frames as one image; its SNN sees the frames as its input
    sequence, `rounds` times over. `per frame`: the ANN sees each frame, and its answers are averaged; its SNN sees each
    frame for `per_frame` steps, each time from its start. `per frame, no reset`: the same weights, but the frames are
    shown in sequence, as in `average`. `direct`: the model with the neuron `direct` is trained as an SNN over the F
    frames. Energy is measured on `images` validation recordings. Returns mean test accuracies. Raises InvalidValue.
    """

    groups = TRAINING

    def __init__(
        self, direct: dict[str, Any], seeds: Sequence[int], rounds: Sequence[int], per_frame: Sequence[int], images: int
    ) -> None:
        for name, values in (("seeds", seeds), ("rounds", rounds), ("per_frame", per_frame)):
            if not isinstance(values, list) or not values:
                raise InvalidValue(name, values, "a list of integers")
            for value in values:
                integer(name, value, at_least=0 if name == "seeds" else 1)
        self.direct, self.images = direct, integer("images", images, at_least=1)
        self.seeds, self.rounds, self.per_frame = (sorted(set(values)) for values in (seeds, rounds, per_frame))

    def run(self, session: Session, record: Record) -> Metrics:
        if "average" not in session.config["dataset"]:
            what = "task=dvs compares ways to show event recordings to a network"
            raise UserError(f"{what}: choose dataset=cifar10_dvs or dataset=cifar10_saccade")
        session.check()
        comparison = Comparison(self, session, record)
        comparison.check()
        return record.tracked(comparison.run)


@dataclass
class Tested:
    """The test result of a network: `steps` of simulation (ANN: passes) and energy (nJ) per recording, and the cost of
    its training: processor seconds, weight updates, and images seen (an image is one frame or one average).
    """

    way: str
    network: str
    steps: int
    accuracy: float
    energy_nj: float
    train_s: float
    updates: int
    train_images: int


@dataclass
class Trained:
    """The best epoch of one training, and its cost (the last three columns of `Tested`)."""

    data: Data
    net: TimeFold
    cost: dict[str, Any]


@dataclass
class Comparison:
    """One run of `task=dvs` with the settings of `task`."""

    task: DVS
    session: Session
    record: Record

    def check(self) -> None:
        """Check the networks and the conversion before the run begins. Raises UserError."""
        seed = self.task.seeds[0]
        framed = self._session(FRAME, seed)
        net, x = framed.network(), stills(next(framed.data.val.batches(1))[0])
        if net.sites():
            trains = "task=dvs trains ANNs with neuron=qcfs, and an SNN with the neuron of task.direct"
            raise UserError(f"neuron={self.session.choices['neuron']} spikes: {trains}")
        if not self._session(DIRECT, seed).network().sites():
            raise UserError(f"task.direct={self.task.direct['_target_']} does not spike: neuron@task.direct=lif does")
        by_qcfs(net.network, x, 1)

    def run(self) -> Metrics:
        rows = [{"seed": seed, **asdict(row)} for seed in self.task.seeds for row in self._of(seed)]
        ways = summary(rows)
        self.record.write({"ways": ways, "seeds": rows}, {"ways": ways_figure(ways)})
        choices = self.session.choices
        self.record.show(f"{choices['model']} on {choices['dataset']}, {len(self.task.seeds)} seeds", ways)
        result: Metrics = {}
        for way in ways:
            name = f"{way['way'].replace(',', '').replace(' ', '_')}_{way['network'].lower()}"
            result[f"test/{name}_accuracy" + f"_T{way['steps']}" * (way["network"] == "SNN")] = way["accuracy"]
        self.record.metrics(result, step=0)
        return result

    def _of(self, seed: int) -> Iterator[Tested]:
        average, framed = self._trained(AVERAGE, seed), self._trained(FRAME, seed)
        yield from self._in_sequence(AVERAGE, average)
        yield from self._by_frame(framed)
        yield from self._in_sequence(SEQUENCE, framed)
        yield self._directly(self._trained(DIRECT, seed))

    def _in_sequence(self, way: str, trained: Trained) -> Iterator[Tested]:
        """Test the SNN that sees the frames one after the other, and for `average` its ANN."""
        data, seen = trained.data, self._seen(trained.data)
        ann = nn.Sequential(OrderedDict(mean=TimeMean(), network=trained.net.network)).eval()
        steps = [seen.shape[1] * r for r in self.task.rounds]
        source, snn = by_qcfs(ann, seen, steps[-1])
        costs = {t: snn.examine(source, seen, t)[1] for t in steps}
        if way == AVERAGE:
            found = ann_accuracy(ann, data.test, self._size, seen.device)
            yield Tested(way, "ANN", 1, found, costs[steps[0]].ann_energy_nj, **trained.cost)
        for t, accuracy in accuracies(snn, data.test, steps, self._size, seen.device).items():
            yield Tested(way, "SNN", t, accuracy, costs[t].energy_nj, **trained.cost)

    def _by_frame(self, trained: Trained) -> Iterator[Tested]:
        """Test the ANN on each frame, and the SNN that starts from its initial state for each frame."""
        data, seen = trained.data, self._seen(trained.data)
        frames, ann = seen.shape[1], trained.net.network.eval()
        source, snn = by_qcfs(ann, stills(seen), self.task.per_frame[-1])
        costs = {t: snn.examine(source, stills(seen), t)[1] for t in self.task.per_frame}
        found = ann_accuracy(PerFrame(ann), data.test, self._size, seen.device)
        yield Tested(FRAME, "ANN", frames, found, frames * costs[self.task.per_frame[0]].ann_energy_nj, **trained.cost)
        for t, accuracy in accuracies(PerFrame(snn), data.test, self.task.per_frame, self._size, seen.device).items():
            yield Tested(FRAME, "SNN", frames * t, accuracy, frames * costs[t].energy_nj, **trained.cost)

    def _directly(self, trained: Trained) -> Tested:
        data, seen = trained.data, self._seen(trained.data)
        tested = evaluate(trained.net, data.test, self.session.loss, self._size, seen.device, len(data.classes))
        return Tested(
            DIRECT, "SNN", trained.net.T, tested.accuracy, accumulates(trained.net, seen) * AC, **trained.cost
        )

    @property
    def _size(self) -> int:
        return self.session.trainer.eval_batch_size

    def _seen(self, data: Data) -> Tensor:
        """Return validation recordings [images, F, ...], on the device."""
        x, _ = next(data.val.batches(self.task.images, spread(data.val, self.task.images)))
        return x.to(self.session.trainer.fabric().device)

    def _session(self, way: str, seed: int, **changed: Any) -> Session:
        """Return the settings of one training."""
        config = self.session.config
        changed |= {
            "seed": seed,
            "dataset": config["dataset"] | {"average": way == AVERAGE, "seed": seed},
            "neuron": self.task.direct if way == DIRECT else config["neuron"],
        }
        return self.session.derived(**changed)

    def _trained(self, way: str, seed: int) -> Trained:
        """Train, or load a training that an interrupted run had finished. An unfinished one starts again, since its
        cost is not known."""
        folder, session = self.record.folder / way.replace(" ", "_") / str(seed), self._session(way, seed)
        if not (folder / "cost.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            console.print(f"{way}, seed {seed}")
            write_json(folder / "cost.json", launched(session.trainer, _fitted, session, folder))
        best = self._session(way, seed, checkpoint=str(folder / "best.pt"))
        net = best.network().to(session.trainer.fabric().device).eval()
        return Trained(best.data, net, json.loads((folder / "cost.json").read_text()))


def _fitted(fabric: Fabric, session: Session, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(session.trainer.threads or THREADS)
    data, net = session.data, session.network()
    start = time.process_time()
    progress = train_network(fabric, session, net, folder)
    seconds, n = time.process_time() - start, len(data.train)
    updates = progress.epoch * -(-n // session.trainer.batch_size)
    return {"train_s": seconds, "updates": updates, "train_images": progress.epoch * n * net.T}


def by_qcfs(ann: nn.Module, x: Tensor, T: int) -> tuple[fx.GraphModule, Converted]:
    """Return the source and its SNN by QCFS for T steps; `x` [N, ...] is shown to both."""
    source, network = rewrite(ann, x[:2])
    walk(source, network, x, T, QCFSConversion())
    return source, Converted(network, T)


@torch.no_grad()
def accumulates(net: TimeFold, x: Tensor) -> float:
    """Return the synaptic operations of an SNN for one sample of x [N, T, ...]: over all steps, each convolution's and
    linear layer's multiply-accumulates x the share of its inputs that are not 0."""
    layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    counts: list[float] = []

    def count(name: str, seen: Tensor, output: Tensor) -> None:
        fan_in = layers[name].weight[0].numel()
        counts.append(output.numel() / len(x) * fan_in * float((seen != 0).float().mean()))

    with observed(layers, count):
        net(x)
    return sum(counts)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over seeds in order of appearance, with the standard deviation of the accuracy (0 for one seed)."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["way"], row["network"], row["steps"]), []).append(row)
    found = []
    for (way, network, steps), same in groups.items():
        accuracy = [row["accuracy"] for row in same]
        others = {key: mean(row[key] for row in same) for key in ("energy_nj", "train_s", "updates", "train_images")}
        spread = stdev(accuracy) if len(same) > 1 else 0.0
        reached = {"seeds": len(same), "accuracy": mean(accuracy), "sd": spread}
        found.append({"way": way, "network": network, "steps": steps} | reached | others)
    return found


def ways_figure(table: Sequence[dict[str, Any]]) -> Figure:
    """Draw for each way accuracy against steps, and the processor time of its training."""
    names = distinct(table, "way")
    figure, (accuracy, cost) = panels(2, 2, 5, 3.8, width_ratios=(2, 1))
    for name, style in zip(names, styles(len(names)), strict=True):
        snn = [row for row in table if row["way"] == name and row["network"] == "SNN"]
        steps, means, spread = ([row[key] for row in snn] for key in ("steps", "accuracy", "sd"))
        accuracy.errorbar(steps, means, spread, **style, capsize=3, label=f"{name}: SNN")
        for row in table:
            if row["way"] == name and row["network"] == "ANN":
                accuracy.axhline(row["accuracy"], color=style["color"], linestyle="--", label=f"{name}: ANN")
        if name != SEQUENCE:  # it shares the weights of another way
            cost.bar_label(cost.barh(name, snn[0]["train_s"], color=style["color"], height=0.6), fmt=" %.0f")
    steps = sorted({row["steps"] for row in table if row["network"] == "SNN"})
    accuracy.set_xscale("log", base=2)
    accuracy.set_xticks(steps, [str(t) for t in steps])
    accuracy.minorticks_off()
    accuracy.set(xlabel="time steps for one recording", ylabel="test accuracy (mean, s.d. over seeds)")
    accuracy.legend(frameon=False, fontsize=8)
    cost.invert_yaxis()
    cost.margins(x=0.15)
    cost.set(xlabel="processor time of one training, s")
    return figure

"""`task=dvs`: QCFS for event recordings, in two ways, beside a directly trained SNN: accuracy, and cost of training."""

from __future__ import annotations

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
from torch import Tensor, nn

from snnexp.analysis import figures, tables
from snnexp.conversion.frames import PerFrame, stills
from snnexp.conversion.measure import AC, accuracies, ann_accuracy, spread
from snnexp.conversion.network import Converted
from snnexp.conversion.qcfs import QCFSConversion
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.walk import walk
from snnexp.dataset.base import Data
from snnexp.errors import InvalidValue, UserError, integer
from snnexp.evaluate import evaluate
from snnexp.rundir import write_json
from snnexp.session import Session
from snnexp.task.train import fit
from snnexp.terminal import console, rows_table
from snnexp.timefold import TimeFold, TimeMean
from snnexp.training import METRICS, THREADS, Metrics, launched

AVERAGE, FRAME, SEQUENCE, DIRECT = "average", "per frame", "per frame, no reset", "direct"


def dvs(
    session: Session,
    direct: dict[str, Any],
    seeds: Sequence[int],
    rounds: Sequence[int],
    per_frame: Sequence[int],
    images: int,
) -> Metrics:
    """Train the model of `session` in three ways with the same settings, for each of `seeds`, and test each once.

    `average`: the ANN sees the mean of a recording's F frames as one image; its SNN sees the frames as its input
    sequence, `rounds` times over. `per frame`: the ANN sees each frame, and its answers are averaged; its SNN sees each
    frame for `per_frame` steps, each time from its start. `per frame, no reset`: the same weights, shown the frames as
    the SNN of `average` is. `direct`: the model with the neuron `direct` is trained as an SNN over the F frames.
    Energy is measured on `images` validation recordings. Returns mean test accuracies. Raises UserError.
    """
    try:
        for name, values in (("seeds", seeds), ("rounds", rounds), ("per_frame", per_frame)):
            if not isinstance(values, list) or not values:
                raise InvalidValue(name, values, "a list of integers")
            for value in values:
                integer(name, value, at_least=0 if name == "seeds" else 1)
        integer("images", images, at_least=1)
    except InvalidValue as error:
        raise error.told(f"task.{error.name}") from error
    if "average" not in session.config["dataset"]:
        raise UserError(
            "task=dvs compares ways to show event recordings to a network: choose dataset=cifar10_dvs or "
            "dataset=cifar10_saccade"
        )
    session.check(METRICS)
    comparison = Comparison(session, direct, sorted(set(seeds)), sorted(set(rounds)), sorted(set(per_frame)), images)
    comparison.check()
    return session.tracked(comparison.run)


@dataclass
class Row:
    """A network on the test split: `steps` of simulation (ANN: passes) and energy (nJ) of one recording, and what its
    training took: processor seconds, updates of the weights, images (one frame, or one average) seen."""

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
    """The best epoch of one training, and its cost: the last three of `Row`."""

    data: Data
    net: TimeFold
    cost: dict[str, Any]


@dataclass
class Comparison:
    """One run of `task=dvs`; see there."""

    session: Session
    direct: dict[str, Any]
    seeds: Sequence[int]
    rounds: Sequence[int]
    per_frame: Sequence[int]
    images: int

    def check(self) -> None:
        """Try everything before the run begins. Raises UserError."""
        framed = self._session(FRAME, self.seeds[0])
        net, x = framed.network(), stills(next(framed.data.val.batches(1))[0])
        if net.sites():
            raise UserError(
                f"neuron={self.session.choices['neuron']} spikes: task=dvs trains ANNs with neuron=qcfs, "
                "and an SNN with the neuron of task.direct"
            )
        if not self._session(DIRECT, self.seeds[0]).network().sites():
            raise UserError(f"task.direct={self.direct['_target_']} does not spike: neuron@task.direct=lif does")
        converted(net.network, x, 1)

    def run(self) -> Metrics:
        rows = [{"seed": seed, **asdict(row)} for seed in self.seeds for row in self._of(seed)]
        ways, folder = summary(rows), self.session.run_dir
        tables.write({"ways": ways, "seeds": rows}, folder / "tables")
        figures.write({"ways": figures.ways(ways)}, folder / "figures")
        self.session.tracker.artifact(folder / "tables")
        self.session.tracker.artifact(folder / "figures")
        choices = self.session.choices
        rows_table(f"{choices['model']} on {choices['dataset']}, {len(self.seeds)} seeds", ways)
        result: Metrics = {}
        for way in ways:
            name = f"{way['way'].replace(',', '').replace(' ', '_')}_{way['network'].lower()}"
            result[f"test/{name}_accuracy" + f"_T{way['steps']}" * (way["network"] == "SNN")] = way["accuracy"]
        self.session.tracker.metrics(result, step=0)
        return result

    def _of(self, seed: int) -> Iterator[Row]:
        average, framed = self._trained(AVERAGE, seed), self._trained(FRAME, seed)
        yield from self._in_sequence(AVERAGE, average)
        yield from self._by_frame(framed)
        yield from self._in_sequence(SEQUENCE, framed)
        yield self._directly(self._trained(DIRECT, seed))

    def _in_sequence(self, way: str, trained: Trained) -> Iterator[Row]:
        """The SNN that sees the frames one after the other, and for `average` its ANN."""
        data, seen = trained.data, self._seen(trained.data)
        ann = nn.Sequential(OrderedDict(mean=TimeMean(), network=trained.net.network)).eval()
        steps = [seen.shape[1] * r for r in self.rounds]
        source, snn = converted(ann, seen, steps[-1])
        costs = {t: snn.examine(source, seen, t)[1] for t in steps}
        if way == AVERAGE:
            found = ann_accuracy(ann, data.test, self._size, seen.device)
            yield Row(way, "ANN", 1, found, costs[steps[0]].ann_energy_nj, **trained.cost)
        for t, accuracy in accuracies(snn, data.test, steps, self._size, seen.device).items():
            yield Row(way, "SNN", t, accuracy, costs[t].energy_nj, **trained.cost)

    def _by_frame(self, trained: Trained) -> Iterator[Row]:
        """The ANN on each frame, and the SNN that starts anew with each."""
        data, seen = trained.data, self._seen(trained.data)
        frames, ann = seen.shape[1], trained.net.network.eval()
        source, snn = converted(ann, stills(seen), self.per_frame[-1])
        costs = {t: snn.examine(source, stills(seen), t)[1] for t in self.per_frame}
        found = ann_accuracy(PerFrame(ann), data.test, self._size, seen.device)
        yield Row(FRAME, "ANN", frames, found, frames * costs[self.per_frame[0]].ann_energy_nj, **trained.cost)
        for t, accuracy in accuracies(PerFrame(snn), data.test, self.per_frame, self._size, seen.device).items():
            yield Row(FRAME, "SNN", frames * t, accuracy, frames * costs[t].energy_nj, **trained.cost)

    def _directly(self, trained: Trained) -> Row:
        data, seen = trained.data, self._seen(trained.data)
        tested = evaluate(trained.net, data.test, self.session.loss, self._size, seen.device, len(data.classes))
        return Row(DIRECT, "SNN", trained.net.T, tested.accuracy, accumulates(trained.net, seen) * AC, **trained.cost)

    @property
    def _size(self) -> int:
        return self.session.trainer.eval_batch_size

    def _seen(self, data: Data) -> Tensor:
        """Validation recordings [images, F, ...], on the device."""
        x, _ = next(data.val.batches(self.images, spread(data.val, self.images)))
        return x.to(self.session.trainer.fabric().device)

    def _session(self, way: str, seed: int, **changed: Any) -> Session:
        """The settings of one training."""
        config = self.session.config
        changed |= {
            "seed": seed,
            "dataset": config["dataset"] | {"average": way == AVERAGE, "seed": seed},
            "neuron": self.direct if way == DIRECT else config["neuron"],
        }
        return Session(config | changed, self.session.choices, self.session.run_dir)

    def _trained(self, way: str, seed: int) -> Trained:
        """Train, or find again what an interrupted run had finished; one that it had begun starts anew, since its cost
        is not known."""
        folder, session = self.session.run_dir / way.replace(" ", "_") / str(seed), self._session(way, seed)
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
    progress = fit(fabric, session, net, folder)
    batches = -(-len(data.train) // session.trainer.batch_size)
    return {
        "train_s": time.process_time() - start,
        "updates": progress.epoch * batches,
        "train_images": progress.epoch * len(data.train) * net.T,
    }


def converted(ann: nn.Module, x: Tensor, T: int) -> tuple[torch.fx.GraphModule, Converted]:
    """(the source, its SNN by QCFS for T steps); `x` [N, ...] is shown to both."""
    source, network = rewrite(ann, x[:2])
    walk(source, network, x, T, QCFSConversion())
    return source, Converted(network, T)


@torch.no_grad()
def accumulates(net: TimeFold, x: Tensor) -> float:
    """Synaptic operations of an SNN for one of x [N, T, ...]: for each convolution and linear layer its
    multiply-accumulates x the share of its inputs that are not 0, over all steps."""
    counts: list[float] = []

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        counts.append(output.numel() / len(x) * weight[0].numel() * float((inputs[0] != 0).float().mean()))

    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return sum(counts)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, in order of appearance, with the standard deviation of the accuracy (0 of one seed)."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["way"], row["network"], row["steps"]), []).append(row)
    found = []
    for (way, network, steps), same in groups.items():
        accuracy = [row["accuracy"] for row in same]
        others = {key: mean(row[key] for row in same) for key in ("energy_nj", "train_s", "updates", "train_images")}
        found.append(
            {
                "way": way,
                "network": network,
                "steps": steps,
                "seeds": len(same),
                "accuracy": mean(accuracy),
                "sd": stdev(accuracy) if len(same) > 1 else 0.0,
                **others,
            }
        )
    return found

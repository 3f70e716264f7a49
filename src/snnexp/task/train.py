"""`task=train`: fit a network, keep its best epoch by validation, and test that epoch once."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from matplotlib.figure import Figure

from snnexp.analysis import figures
from snnexp.analysis.temperature import adapt, temperature
from snnexp.config import TRAINING
from snnexp.dataset.base import Data
from snnexp.errors import Pruned
from snnexp.evaluate import Evaluation, evaluate, recorded
from snnexp.files import replace_by
from snnexp.neuron.base import SpikingSite
from snnexp.record import Record, Rows
from snnexp.session import Session
from snnexp.task.base import Task
from snnexp.terminal import EpochBar, quiet
from snnexp.timefold import Site, TimeFold, observed, unfold
from snnexp.training import METRICS, THREADS, Fit, Metrics, Progress, Prune, launched, load_checkpoint
from snnexp.trial.reporter import compared, prune

SPIKES = "val/spikes_per_sample"  # of all sites together, at the best epoch
AT_T = "val/accuracy_T"  # with the output averaged over the first T steps, at the best epoch


class Train(Task):
    """Train, then test the best epoch. A subclass, picklable for data-parallel ranks, may measure after each epoch.

    `run` raises UserError for wrong values or missing data, Interrupted after Ctrl-C (the run can then be resumed), and
    Pruned if the pruner of its study stops the trial.
    """

    groups = TRAINING

    def objectives(self, session: Session) -> list[str]:
        T, asked = session.config["timesteps"], [name.removeprefix(AT_T) for name in session.objectives]
        at_t = [t for t in asked if t.isdigit() and isinstance(T, int) and 1 <= int(t) <= T]
        return [*METRICS, SPIKES, *(f"{AT_T}{t}" for t in at_t or ("1", T))]

    def measured(self, session: Session, net: TimeFold, device: torch.device) -> Metrics:
        """Return values that become part of an epoch's metrics."""
        return {}

    def outcome(self, history: Sequence[Metrics]) -> tuple[Mapping[str, Rows], Mapping[str, Figure]]:
        """Return tables and figures, by name, of the measurements over all epochs."""
        return {}, {}

    def run(self, session: Session, record: Record) -> Metrics:
        session.check()
        session.network()  # prepares the data and tries everything before the run begins and ranks are spawned
        return record.tracked(lambda: _launched(self, session, record))


def _launched(task: Train, session: Session, record: Record) -> Metrics:
    result: Metrics | None = launched(session.trainer, _train, task, session, record)
    if result is None:
        raise Pruned("the pruner stopped this trial")
    return result


def _train(fabric: Fabric, task: Train, session: Session, record: Record) -> Metrics | None:
    """Train one data-parallel rank, usually the only one; rank 0 reports. Return None if the pruner stopped it."""
    torch.set_num_threads(session.trainer.threads or THREADS)
    data, net, first = session.data, session.network(), fabric.is_global_zero

    def on_epoch(progress: Progress) -> None:
        if first:
            for epoch, metrics in enumerate(progress.history, 1):  # what is already logged is not logged again
                record.metrics(metrics, step=epoch)
            record.tracker.flush()

    start = time.monotonic()

    def measure() -> Metrics:
        return task.measured(session, net, fabric.device) | _for_pruner(session, net, fabric.device)

    progress = train_network(fabric, session, net, record.folder, on_epoch, prune, measure)
    on_epoch(progress)
    if progress.pruned:
        return None
    seconds = time.monotonic() - start
    if not first:
        return {}
    tables, drawn = task.outcome(progress.history)
    record.write(tables, drawn)
    for rows in list(tables.values())[:1]:
        record.show("after the last epoch", [row for row in rows if row["epoch"] == rows[-1]["epoch"]])
    return _finish(session, record, data, net, progress, fabric.device) | {"seconds": seconds}


def _for_pruner(session: Session, net: TimeFold, device: torch.device) -> Metrics:
    """Measure the objectives that are otherwise known only at the end, if a pruner compares them after each epoch."""
    late = [name for name in compared() if name == SPIKES or name.startswith(AT_T)]
    if not late:
        return {}
    data = session.data
    val = evaluate(net, data.val, session.loss, session.trainer.eval_batch_size, device, len(data.classes))
    values = {SPIKES: val.spikes} | {f"{AT_T}{t}": accuracy for t, accuracy in enumerate(val.accuracy_t, 1)}
    return {name: values[name] for name in late}


def train_network(
    fabric: Fabric,
    session: Session,
    net: TimeFold,
    folder: Path,
    on_epoch: Callable[[Progress], None] | None = None,
    prune: Prune = lambda history: False,
    measure: Callable[[], Metrics] = dict,
) -> Progress:
    """Train `net` as the session's config says, or resume the training in `folder`; show a progress bar."""
    with EpochBar(session.trainer.epochs, show=fabric.is_global_zero and not quiet()) as bar:

        def epoch(progress: Progress) -> None:
            bar.epoch(progress)
            if on_epoch:
                on_epoch(progress)

        parts = session.data, session.loss, session.optimizer, session.scheduler, session.trainer
        choose = partial(adapt, fabric, net, session.data.train, session.loss, session.seed)
        calls: dict[str, Any] = {"on_step": bar.step, "on_epoch": epoch, "prune": prune, "measure": measure}
        progress = Fit(fabric, net, *parts, seed=session.seed, folder=folder, before_step=choose, **calls).run()
        bar.epoch(progress)
    return progress


def _finish(
    session: Session, record: Record, data: Data, net: TimeFold, progress: Progress, device: torch.device
) -> Metrics:
    """Test the best epoch's weights; log figures, the model and the final metrics."""
    best = load_checkpoint(record.folder / "best.pt")
    net.load_state_dict(best["model"])
    size, classes = session.trainer.eval_batch_size, len(data.classes)
    val, test = (evaluate(net, split, session.loss, size, device, classes) for split in (data.val, data.test))
    for t, (of_val, of_test) in enumerate(zip(val.accuracy_t, test.accuracy_t, strict=True), 1):
        record.metrics({"val/accuracy_at_t": of_val, "test/accuracy_at_t": of_test}, step=t)
    at_t = {f"{AT_T}{t}": accuracy for t, accuracy in enumerate(val.accuracy_t, 1) if val.rates}
    final = {SPIKES: val.spikes} if val.rates else {}  # an ANN has none
    final |= {"test/loss": test.loss, "test/accuracy": test.accuracy}
    final |= {"test/spikes_per_sample": test.spikes} if test.rates else {}
    final |= {"best_epoch": best["epoch"] + 1, "epochs": progress.epoch}
    final |= {f"test/rate/{name}": rate for name, rate in test.rates.items()}
    record.metrics(final, step=progress.epoch)
    drawn = {
        "learning": figures.learning(progress.history, best["epoch"] + 1),
        **({"accuracy_at_t": figures.accuracy_at_t(val.accuracy_t, test.accuracy_t)} if net.T > 1 else {}),
        **_figures(net, data, test, device),
    }
    record.write({}, drawn | temperature(net, progress.history))
    record.artifact("best.pt")  # for checkpoint=runs:/<id>
    replace_by(record.folder / "model.pt", partial(torch.save, net.cpu()))
    record.tracker.model(net)
    metrics: Metrics = best["metrics"] | at_t | final
    return metrics


def _figures(net: TimeFold, data: Data, test: Evaluation, device: torch.device) -> dict[str, Figure]:
    made = {"confusion": figures.confusion(test.confusion, data.classes)}
    if sites := {name: site for name, site in net.sites().items() if site.spiking}:
        made |= _example(net, sites, data, device)
        made["rates"] = figures.rates(test.rates, "spikes per neuron and step")
        surrogates = [s for site in sites.values() if (s := getattr(site, "surrogate", None)) is not None]
        if surrogates:
            made["surrogate"] = figures.surrogate(surrogates[0])
    return made


def _example(net: TimeFold, sites: Mapping[str, Site], data: Data, device: torch.device) -> dict[str, Figure]:
    """Draw the spikes and the potentials of one test sample, with its label and what the network answered."""
    x, y = next(data.test.batches(1))
    currents: dict[str, torch.Tensor] = {}
    watched = observed(sites, lambda name, current, _: currents.update({name: current}))
    with recorded(net) as trains, watched, torch.inference_mode():
        answer = int(net(x.to(device)).mean(0).argmax())
    label, answered = (data.classes[i] for i in (int(y), answer))
    verdict = "right" if label == answered else "wrong"
    spikes = {name: train[:, 0].cpu() for name, train in trains.items()}
    made = {"rasters": figures.rasters(x[0], spikes, f"label {label}, answered {answered} ({verdict})")}
    traces = {
        name: (
            unfold(site.charged(currents[name]), net.T)[:, 0].flatten(1).cpu(),
            spikes[name].flatten(1),
            site.threshold,
        )
        for name, site in sites.items()
        if isinstance(site, SpikingSite)
    }
    return made | ({"potentials": figures.potentials(traces)} if traces else {})

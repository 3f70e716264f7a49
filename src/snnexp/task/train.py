"""`task=train`: fit a network, keep its best epoch by validation, test that one once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lightning_fabric import Fabric

from snnexp.analysis import figures
from snnexp.analysis.tables import Rows, write
from snnexp.analysis.temperature import adapt
from snnexp.dataset.base import Data
from snnexp.errors import Pruned
from snnexp.evaluate import evaluate, recorded
from snnexp.session import Session
from snnexp.terminal import EpochBar, rows_table
from snnexp.timefold import TimeFold
from snnexp.training import METRICS, THREADS, Fit, Metrics, Progress, Prune, launched, load_checkpoint
from snnexp.trial.job import prune

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPIKES = "val/spikes_per_sample"  # of all sites together, of the best epoch
AT_T = "val/accuracy_T"  # when the output is averaged over the first so many steps, of the best epoch


Outcome = tuple[dict[str, Rows], dict[str, "Figure"]]  # tables and figures by name


class Measurement(Protocol):
    """What a task measures after each epoch of a training. Picklable, for data-parallel ranks."""

    def __call__(self, net: TimeFold, data: Data, device: torch.device) -> Metrics:
        """Becomes part of the epoch's metrics."""

    def outcome(self, history: Sequence[Metrics]) -> Outcome:
        """Tables and figures of all epochs."""


def train(session: Session, measurement: Measurement | None = None) -> Metrics:
    """Train, then test the best epoch. Returns the final metrics.

    Raises UserError for wrong values or missing data, Interrupted after Ctrl-C (the run can then be resumed), Pruned
    if it is a trial that its sweep gives up.
    """
    T, asked = session.config["timesteps"], [name.removeprefix(AT_T) for name in session.objectives]
    at_t = [t for t in asked if t.isdigit() and isinstance(T, int) and 1 <= int(t) <= T]
    session.check([*METRICS, SPIKES, *(f"{AT_T}{t}" for t in at_t or ("1", T))])
    session.network()  # data are prepared and everything is tried before the run begins, and before ranks are spawned
    return session.tracked(lambda: _launched(session, measurement))


def _launched(session: Session, measurement: Measurement | None) -> Metrics:
    result: Metrics | None = launched(session.trainer, _train, session, measurement)
    if result is None:
        raise Pruned("the pruner stopped this trial")
    return result


def _train(fabric: Fabric, session: Session, measurement: Measurement | None) -> Metrics | None:
    """One data-parallel rank (the only one, as a rule); rank 0 reports. None if a sweep's pruner has stopped it."""
    torch.set_num_threads(session.trainer.threads or THREADS)
    data, net = session.data, session.network()
    tracker, first = session.tracker, fabric.is_global_zero

    def on_epoch(progress: Progress) -> None:
        if first:
            for epoch, metrics in enumerate(progress.history, 1):  # those already logged are not logged again
                tracker.metrics(metrics, step=epoch)
            tracker.flush()

    start = time.monotonic()
    measure = partial(measurement, net, data, fabric.device) if measurement else dict
    progress = fit(fabric, session, net, session.run_dir, on_epoch, prune, measure)
    on_epoch(progress)
    if progress.pruned:
        return None
    seconds = time.monotonic() - start
    if measurement and first:
        report(session, *measurement.outcome(progress.history))
    return _finish(session, data, net, progress, seconds, fabric.device) if first else {}


def fit(
    fabric: Fabric,
    session: Session,
    net: TimeFold,
    folder: Path,
    on_epoch: Callable[[Progress], None] | None = None,
    prune: Prune = lambda history: False,
    measure: Callable[[], Metrics] = dict,
) -> Progress:
    """Train `net` as the session's config says, or go on with what `folder` holds; a bar shows it."""
    with EpochBar(session.trainer.epochs, show=fabric.is_global_zero and not session.quiet) as bar:

        def epoch(progress: Progress) -> None:
            bar.epoch(progress)
            if on_epoch:
                on_epoch(progress)

        progress = Fit(
            fabric,
            net,
            session.data,
            session.loss,
            session.optimizer,
            session.scheduler,
            session.trainer,
            seed=session.seed,
            folder=folder,
            on_step=bar.step,
            on_epoch=epoch,
            prune=prune,
            before_step=partial(adapt, fabric, net, session.data.train, session.loss, session.seed),
            measure=measure,
        ).run()
        bar.epoch(progress)
    return progress


def by_layer(history: Sequence[Metrics], what: str, columns: Sequence[str]) -> Rows:
    """The metrics <what>/<column>/<layer> of all epochs as rows of epoch, layer and columns."""
    layers = dict.fromkeys(key.split("/", 2)[2] for key in history[0] if key.startswith(f"{what}/{columns[0]}/"))
    layers |= dict.fromkeys(key.split("/", 2)[2] for key in history[0] if key.startswith(f"{what}/{columns[-1]}/"))
    return [
        {"epoch": epoch, "layer": layer, **{c: metrics.get(f"{what}/{c}/{layer}", math.nan) for c in columns}}
        for epoch, metrics in enumerate(history, 1)
        for layer in layers
    ]


def report(session: Session, tables: Mapping[str, Rows], made: Mapping[str, Figure]) -> None:
    """Write tables/<name>.csv and figures/<name>.png into the run directory, log both, and print the first table (its
    last epoch, if it has epochs)."""
    if not session.quiet:
        name, first = next(iter(tables.items()))
        title = "after the last epoch" if "epoch" in first[-1] else name
        rows_table(title, [row for row in first if row.get("epoch") == first[-1].get("epoch")])
    write(tables, session.run_dir / "tables")
    figures.write(made, session.run_dir / "figures")
    for folder in ("tables", "figures"):
        session.tracker.artifact(session.run_dir / folder)


def _finish(
    session: Session, data: Data, net: TimeFold, progress: Progress, seconds: float, device: torch.device
) -> Metrics:
    """Test the best epoch's weights; figures, the model, the final metrics."""
    best = load_checkpoint(session.run_dir / "best.pt")
    net.load_state_dict(best["model"])
    measured = partial(
        evaluate,
        net,
        loss=session.loss,
        batch_size=session.trainer.eval_batch_size,
        device=device,
        classes=len(data.classes),
    )
    val, test = measured(data.val), measured(data.test)
    for t, (of_val, of_test) in enumerate(zip(val.accuracy_t, test.accuracy_t, strict=True), 1):
        session.tracker.metrics({"val/accuracy_at_t": of_val, "test/accuracy_at_t": of_test}, step=t)
    final = {
        **best["metrics"],
        **({SPIKES: val.spikes} if val.rates else {}),
        **{f"{AT_T}{t}": accuracy for t, accuracy in enumerate(val.accuracy_t, 1) if val.rates},
        "test/loss": test.loss,
        "test/accuracy": test.accuracy,
        **({"test/spikes_per_sample": test.spikes} if test.rates else {}),  # an ANN has none
        "best_epoch": best["epoch"] + 1,
        "epochs": progress.epoch,
    }
    final |= {f"test/rate/{name}": rate for name, rate in test.rates.items()}
    session.tracker.metrics(
        {k: v for k, v in final.items() if k not in best["metrics"] and not k.startswith(AT_T)}, step=progress.epoch
    )
    made = _figures(net, data, test.confusion, test.rates, device)
    if any(key.startswith("train/b") for key in progress.history[0]):
        made["temperature"] = figures.temperature(progress.history)
    figures.write(made, session.run_dir / "figures")
    session.tracker.artifact(session.run_dir / "figures")
    session.tracker.artifact(session.run_dir / "best.pt")  # for checkpoint=runs:/<id>
    torch.save(net.cpu(), session.run_dir / "model.pt")
    session.tracker.model(session.run_dir / "model.pt")
    return final | {"seconds": seconds}


def _figures(
    net: TimeFold, data: Data, confusion: torch.Tensor, rates: dict[str, float], device: torch.device
) -> dict[str, Any]:
    x, y = next(data.test.batches(1))
    with recorded(net) as trains, torch.inference_mode():
        net(x.to(device))
    made = {"confusion": figures.confusion(confusion, data.classes)}
    if sites := {name: site for name, site in net.sites().items() if site.spiking}:
        example = {name: train[:, 0].cpu() for name, train in trains.items()}
        made["rasters"] = figures.rasters(x[0], example, f"class {data.classes[int(y)]}")
        made["rates"] = figures.rates(rates, "spikes per neuron and step")
        surrogates = [s for site in sites.values() if (s := getattr(site, "surrogate", None)) is not None]
        if surrogates:
            made["surrogate"] = figures.surrogate(surrogates[0])
    return made

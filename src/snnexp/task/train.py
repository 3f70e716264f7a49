"""`task=train`: fit a network, keep its best epoch by validation, test that one once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from snnexp.analysis import figures
from snnexp.dataset.base import Data
from snnexp.evaluate import evaluate, recorded
from snnexp.session import Session
from snnexp.terminal import EpochBar
from snnexp.timefold import TimeFold
from snnexp.training import THREADS, Fit, Metrics, Progress, launched, load


def train(session: Session) -> Metrics:
    """Train, then test the best epoch. Returns the final metrics.

    Raises UserError for wrong values or missing data, Interrupted after Ctrl-C (the run can then be resumed).
    """
    session.check()
    session.network()  # data are prepared and everything is tried before the run begins, and before ranks are spawned
    return session.tracked(lambda: launched(session.trainer, _train, session))


def _train(fabric: Fabric, session: Session) -> Metrics:
    """One data-parallel rank (the only one, as a rule); rank 0 reports."""
    torch.set_num_threads(session.trainer.threads or THREADS)
    data, net = session.data, session.network()
    tracker, first = session.tracker, fabric.is_global_zero

    def on_epoch(progress: Progress) -> None:
        if first:
            for epoch, metrics in enumerate(progress.history, 1):  # those already logged are not logged again
                tracker.metrics(metrics, step=epoch)
            tracker.flush()

    start = time.monotonic()
    progress = fit(fabric, session, net, session.run_dir, on_epoch)
    on_epoch(progress)
    seconds = time.monotonic() - start
    return _finish(session, data, net, progress, seconds, fabric.device) if first else {}


def fit(
    fabric: Fabric, session: Session, net: TimeFold, folder: Path, on_epoch: Callable[[Progress], None] | None = None
) -> Progress:
    """Train `net` as the session's config says, or go on with what `folder` holds; a bar shows it."""
    with EpochBar(session.trainer.epochs, show=fabric.is_global_zero) as bar:

        def report(progress: Progress) -> None:
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
            on_epoch=report,
        ).run()
        bar.epoch(progress)
    return progress


def _finish(
    session: Session, data: Data, net: TimeFold, progress: Progress, seconds: float, device: torch.device
) -> Metrics:
    """Test the best epoch's weights; figures, the model, the final metrics."""
    best = load(session.run_dir / "best.pt")
    net.load_state_dict(best["model"])
    test = evaluate(net, data.test, session.loss, session.trainer.eval_batch_size, device, len(data.classes))
    for t, accuracy in enumerate(test.accuracy_t, 1):
        session.tracker.metrics({"test/accuracy_at_t": accuracy}, step=t)
    final = {
        **best["metrics"],
        "test/loss": test.loss,
        "test/accuracy": test.accuracy,
        **({"test/spikes_per_sample": test.spikes} if test.rates else {}),  # an ANN has none
        "best_epoch": best["epoch"] + 1,
        "epochs": progress.epoch,
    }
    final |= {f"test/rate/{name}": rate for name, rate in test.rates.items()}
    session.tracker.metrics(
        {k: v for k, v in final.items() if not k.startswith(("train/", "val/", "lr"))}, step=progress.epoch
    )
    figures.write(_figures(net, data, test.confusion, test.rates, device), session.run_dir / "figures")
    session.tracker.artifact(session.run_dir / "figures")
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

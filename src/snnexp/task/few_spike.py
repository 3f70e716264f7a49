"""`task=few_spike`: the paper's table. Networks as ANN and as few-spike SNN: accuracies, sizes, spikes, latency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from snnexp.analysis import few_spike as drawn
from snnexp.analysis import figures, tables
from snnexp.build import build
from snnexp.calibration.base import Calibration
from snnexp.conversion import slots
from snnexp.conversion.measure import LayerError, spread
from snnexp.conversion.network import Decoded, converted
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.walk import Method, walk
from snnexp.errors import InvalidValue, UserError, integer
from snnexp.session import Session
from snnexp.task.convert import still, trained
from snnexp.terminal import LayerBar
from snnexp.training import Metrics

MANY = 100  # classes from which on the five best answers are counted as well


def few_spike(session: Session, depths: list[int] | None, test_images: int | None, layer_images: int) -> Metrics:
    """One row for each of `depths` (of a residual network; null: the model as it is), trained first unless there is a
    `checkpoint`, and converted for K = timesteps. Spikes are counted on `layer_images` validation images.

    Writes tables/few_spike.csv, tables/layers.csv and coefficients, and figures. Raises UserError.
    """
    try:
        integer("task.layer_images", layer_images, at_least=1)
        if test_images is not None:
            integer("task.test_images", test_images, at_least=1)
        integer("timesteps", session.config["timesteps"], at_least=1)
    except InvalidValue as error:
        raise error.told(error.name) from error
    method: Method = build("conversion", session.config)
    if not issubclass(method.neuron.network, Decoded):
        raise UserError(f"task=few_spike needs conversion=few_spike, not {session.choices['conversion']}")
    sources = dict(_sources(session, depths))
    calibration: Calibration = build("calibration", session.config)
    for source in sources.values():
        source.check(["val/accuracy"])
        try:
            images = calibration.sample(source.data.train)[:2]
        except InvalidValue as error:
            raise error.told(f"calibration.{error.name}") from error
        graph, network = rewrite(still(source.network()), images, method.maxpool, method.neuron.vocabulary)
        walk(graph, network, images, session.config["timesteps"], method)
    return session.tracked(lambda: _measured(session, sources, method, calibration, test_images, layer_images))


def _sources(session: Session, depths: list[int] | None) -> Iterator[tuple[str, Session]]:
    """The session of each ANN, by name."""
    model = session.config["model"]
    depths = [depths] if isinstance(depths, int) else depths
    if depths == []:
        raise UserError("task.depths=[] is not allowed: it must be a list of depths, or null")
    if depths is not None and "depth" not in model:
        raise UserError(f"task.depths={depths}: model={session.choices['model']} has no depth; leave it null")
    if depths is not None and len(depths) > 1 and session.config["checkpoint"]:
        raise UserError("checkpoint= is for one network: give one depth in task.depths, or null")
    for depth in [None] if depths is None else depths:
        changed = model if depth is None else model | {"depth": depth}
        name = session.choices["model"].rstrip("0123456789") + str(depth) if depth else session.choices["model"]
        config = session.config | {"model": changed, "timesteps": 1}
        yield name, Session(config, session.choices, session.run_dir)


def _measured(
    session: Session,
    sources: dict[str, Session],
    method: Method,
    calibration: Calibration,
    test_images: int | None,
    layer_images: int,
) -> Metrics:
    K, folder, rows = session.config["timesteps"], session.run_dir, []
    layers: list[dict[str, Any]] = []
    shares: dict[str, Tensor] = {}
    device = session.trainer.fabric().device
    for name, source in sources.items():
        data = source.data
        checkpoint = session.config["checkpoint"] or trained(source)
        net = Session(source.config | {"checkpoint": str(checkpoint)}, session.choices, folder).network()
        ann = still(net).eval().to(device)
        images = calibration.sample(data.train).to(device)
        source_graph, network = rewrite(ann, images[:2], method.maxpool, method.neuron.vocabulary)
        with LayerBar(f"{name} K={K}") as bar:
            walk(source_graph, network, images, K, method, calibration.corrections, bar.report)
        snn = converted(network, K)
        assert isinstance(snn, Decoded)
        x = next(data.val.batches(layer_images, spread(data.val, layer_images)))[0].to(device)
        errors, account = snn.examine(source_graph, x, K)
        shares[name] = slots.counts(snn, x)
        layers += [{"network": name, **asdict(error)} for error in errors]
        ranks = (1, 5) if len(data.classes) >= MANY else (1,)

        def accuracy(network: nn.Module, ranks: tuple[int, ...] = ranks, source: Session = source) -> dict[int, float]:
            return slots.top(network, source.data.test, ranks, session.trainer.eval_batch_size, device, test_images)

        of_ann, of_snn = accuracy(ann), accuracy(snn)
        rows.append(
            {"network": name}
            | {f"ann_top{r}": of_ann[r] for r in ranks}
            | {f"snn_top{r}": of_snn[r] for r in ranks}
            | {
                "parameters": account.more["parameters"],
                "layers": account.more["layers"],
                "neurons": account.neurons,
                "spikes": account.spikes,
                "spikes_per_neuron": account.spikes_per_neuron,
                "at_most_two": account.more["at_most_two"],
                "latency": account.latency,
                "interval": account.more["interval"],
                "energy_nj": account.energy_nj,
                "ann_energy_nj": account.ann_energy_nj,
            }
        )
        tables.write({f"{made}_{name}": found for made, found in snn.tables().items()}, folder / "tables")
    last = [
        LayerError(**{k: v for k, v in layer.items() if k != "network"})
        for layer in layers
        if layer["network"] == rows[-1]["network"]
    ]
    tables.write({"few_spike": rows, "layers": layers}, folder / "tables")
    figures.write({"spikes": drawn.shares(shares), "layers": figures.layers(last)}, folder / "figures")
    for part in ("tables", "figures"):
        session.tracker.artifact(folder / part)
    _print(rows, K)
    result = {
        f"test/{key}_{row['network']}" if "top" in key else f"{key}_{row['network']}": float(value)
        for row in rows
        for key, value in row.items()
        if key != "network"
    }
    session.tracker.metrics(result, step=K)
    return result


def _print(rows: list[dict[str, Any]], K: int) -> None:
    """The talk's table on the terminal."""
    table = Table(title=f"few-spike conversion, K = {K}", title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(
            *(
                value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
                for value in row.values()
            )
        )
    Console(soft_wrap=True).print(table)

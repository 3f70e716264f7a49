"""`task=unevenness`: what makes v(T) leave [0, theta), in small neurons and in a converted network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from snnexp.analysis import figures, tables
from snnexp.analysis.unevenness import Neuron, Orders, search, trace
from snnexp.conversion.arrival import Arrival, arrivals, explanations
from snnexp.conversion.measure import LayerError
from snnexp.errors import InvalidValue, require
from snnexp.session import Session
from snnexp.task.convert import Conversion
from snnexp.terminal import rows_table
from snnexp.training import Metrics


def unevenness(
    session: Session,
    cases: Mapping[str, Mapping[str, Any]],
    weights: Sequence[Sequence[float]],
    thresholds: Sequence[float],
    starts: Sequence[float],
    T: Sequence[int],
    val_images: int | None,
    test_images: int | None,
    layer_images: int,
) -> Metrics:
    """Small neurons: `cases` step by step, and all orders for each of `weights` x `thresholds` x `starts` x `T`. Then
    the converted network at each of timesteps: accuracy, kinds and sizes of errors by layer, and what they become when
    the same spikes arrive in another order.

    Raises UserError as `task=convert` does, and for small neurons that cannot be.
    """
    try:
        for name, values in (("weights", weights), ("thresholds", thresholds), ("starts", starts), ("T", T)):
            require(isinstance(values, list) and bool(values), name, values, "a list")
        steps = [{"case": name} | row for name, case in cases.items() for row in _case(name, **case)]
        orders = [search(Neuron(*chosen)) for chosen in product(weights, thresholds, starts, T)]
    except InvalidValue as error:
        raise error.told(f"task.{error.name}") from error
    conversion = Conversion(session, val_images, test_images, layer_images)
    conversion.integrating("task=unevenness")
    return session.tracked(lambda: _measured(conversion, steps, orders))


def _case(
    name: str, weights: Sequence[float], trains: Sequence[str], theta: float = 1.0, start: float = 0.0
) -> list[dict[str, Any]]:
    try:
        require(
            bool(trains) and all(isinstance(word, str) for word in trains),
            "trains",
            list(trains),
            'quoted words of 0 and 1, one an input, such as ["10", "01"]',
        )
        return trace(Neuron(weights, theta, start, len(trains[0])), trains)
    except InvalidValue as error:
        raise InvalidValue(f"cases.{name}.{error.name}", error.value, error.allowed) from error


def _measured(conversion: Conversion, cases: list[dict[str, Any]], orders: list[Orders]) -> Metrics:
    session, layers, times = conversion.session, list[LayerError](), list[Arrival]()
    result = conversion.prepare()
    for steps in conversion.groups():
        snn, source, _ = conversion.converted(steps[-1], calibrated=True)
        result |= conversion.accuracies(snn, steps, "snn")
        for t in steps:
            result |= conversion.examined(source, snn, t, layers)
            if t > 1 and snn.integrates:
                times += arrivals(snn, conversion.seen(), t, session.seed)
    result["val/accuracy"] = result[f"val/snn_accuracy_T{conversion.steps[-1]}"]
    kinds = [_kinds(layer) for layer in layers]
    for t in conversion.steps:
        at = [row for row in kinds if row["T"] == t]
        mean = {f"val/{kind}": sum(row[kind] for row in at) / len(at) for kind in ("over", "under", "uneven")}
        session.tracker.metrics(mean, step=t)
        result |= {f"{name}_T{t}": value for name, value in mean.items()}
    _report(
        conversion,
        result,
        {
            "cases": cases,
            "orders": [found.row() for found in orders],
            "errors": [
                found.row() | {"error": e, "share": share} for found in orders for e, share in found.share.items()
            ],
            "kinds": kinds,
            "arrivals": [asdict(row) for row in times],
            "explanations": explanations(times),
        },
        orders,
    )
    return result


def _kinds(layer: LayerError) -> dict[str, Any]:
    """Shares of the neurons of a layer, and how large the error is where there is one, in spikes."""
    shares = {kind: getattr(layer, kind) for kind in ("over", "under", "zeros", "saturated")}
    return {
        "layer": layer.layer,
        "T": layer.T,
        "inside": 1 - sum(shares.values()),
        **shares,
        "spikes_over": layer.over_spikes / layer.over if layer.over else 0.0,
        "spikes_under": layer.under_spikes / layer.under if layer.under else 0.0,
        "uneven": layer.unevenness**0.5 / layer.threshold,
        "error": layer.error**0.5 / layer.threshold,
    }


def _report(
    conversion: Conversion, result: Metrics, made: dict[str, list[dict[str, Any]]], orders: list[Orders]
) -> None:
    session, longest = conversion.session, conversion.steps[-1]
    tables.write(made, session.run_dir / "tables")
    accuracy = {"SNN": {t: result[f"test/snn_accuracy_T{t}"] for t in conversion.steps}}
    drawn = {
        "orders": figures.orders(orders),
        "kinds": figures.kinds(made["kinds"]),
        "accuracy": figures.accuracy_against_t(accuracy, result["test/ann_accuracy"]),
    }
    if made["arrivals"]:
        drawn["arrivals"] = figures.arrivals(made["arrivals"])
    figures.write(drawn, session.run_dir / "figures")
    session.tracker.metrics({k: v for k, v in result.items() if "_T" not in k}, step=longest)
    session.tracker.artifact(session.run_dir / "tables")
    session.tracker.artifact(session.run_dir / "figures")
    rows_table(
        "small neurons, all orders of their spikes",
        [{k: v for k, v in row.items() if not k.startswith("worst")} for row in made["orders"]],
    )
    rows_table("unevenness of layers: rank correlation with their traits", made["explanations"])
    rows_table(f"shares of neurons after T = {longest} steps", [row for row in made["kinds"] if row["T"] == longest])

"""`task=unevenness`: show why v(T) leaves [0, theta), in small neurons and in a converted network."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from snnexp.analysis.style import BLUE, GREY, ORANGE, distinct, layer_labels, panels, styles
from snnexp.analysis.unevenness import SmallNeuron, orders_figure, search, trace
from snnexp.conversion.arrival import Arrival, arrivals, explanations
from snnexp.conversion.measure import LayerError
from snnexp.errors import InvalidValue, require
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.converting import Conversion, Converting, accuracy_figure
from snnexp.training import Metrics

Row = dict[str, Any]
KINDS = {  # label and colour of each kind of neuron whose residual lies outside [0, theta)
    "over": ("over-firing", ORANGE),
    "under": ("under-firing", BLUE),
    "zeros": ("outside, correct zero", "#d9d9d9"),
    "saturated": ("outside, correctly saturated", GREY),
}


class Unevenness(Converting):
    """Trace small neurons (`cases`) step by step, and try all orders of their input spikes for every combination of
    `weights`, `thresholds`, `starts` and `T`. Then measure the converted network at each of timesteps: accuracy, kinds
    and sizes of errors by layer, and the errors when the same spikes arrive in other orders.

    Raises InvalidValue for small neurons that cannot exist; `run` raises UserError as `task=convert` does.
    """

    def __init__(
        self,
        cases: Mapping[str, Mapping[str, Any]],
        weights: Sequence[Sequence[float]],
        thresholds: Sequence[float],
        starts: Sequence[float],
        T: Sequence[int],
        val_images: int | None,
        test_images: int | None,
        layer_images: int,
    ) -> None:
        super().__init__(val_images, test_images, layer_images)
        for name, values in (("weights", weights), ("thresholds", thresholds), ("starts", starts), ("T", T)):
            require(isinstance(values, list) and bool(values), name, values, "a list")
        self.cases = [{"case": name} | row for name, case in cases.items() for row in _case(name, **case)]
        self.orders = [search(SmallNeuron(*chosen)) for chosen in product(weights, thresholds, starts, T)]

    def run(self, session: Session, record: Record) -> Metrics:
        conversion = self.conversion(session, record)
        conversion.integrating("task=unevenness")
        return record.tracked(lambda: self._measured(conversion))

    def _measured(self, conversion: Conversion) -> Metrics:
        layers, times = list[LayerError](), list[Arrival]()
        conversion.load_ann()
        result = conversion.ann_accuracies()
        for steps in conversion.groups():
            snn, source, _ = conversion.converted(steps[-1], calibrated=True)
            result |= conversion.accuracies(snn, steps, "snn")
            for t in steps:
                errors, _, cost = conversion.examined(source, snn, t)
                layers += errors
                result |= cost
                if t > 1 and conversion.mitigation.idle:
                    times += arrivals(snn, conversion.seen(), t, conversion.session.seed)
        result["val/accuracy"] = result[f"val/snn_accuracy_T{conversion.steps[-1]}"]
        kinds = [_kinds(layer) for layer in layers]
        for t in conversion.steps:
            at = [row for row in kinds if row["T"] == t]
            mean = {f"val/{kind}": sum(row[kind] for row in at) / len(at) for kind in ("over", "under", "uneven")}
            conversion.record.metrics(mean, step=t)
            result |= {f"{name}_T{t}": value for name, value in mean.items()}
        self._report(conversion, result, kinds, times)
        return result

    def _report(self, conversion: Conversion, result: Metrics, kinds: list[Row], times: list[Arrival]) -> None:
        record, longest = conversion.record, conversion.steps[-1]
        orders, arrived = [found.row() for found in self.orders], [asdict(row) for row in times]
        pairs = [(row, *pair) for row, found in zip(orders, self.orders, strict=True) for pair in found.share.items()]
        shares = [row | {"error": error, "share": share} for row, error, share in pairs]
        explained, names_of = explanations(times), layer_labels(distinct(kinds, "layer"))
        accuracy = {"SNN": {t: result[f"test/snn_accuracy_T{t}"] for t in conversion.steps}}
        drawn = {
            "orders": orders_figure(self.orders),
            "kinds": kinds_figure(kinds),
            "accuracy": accuracy_figure(accuracy, result["test/ann_accuracy"]),
        } | ({"arrivals": arrivals_figure(arrived, names_of)} if arrived else {})
        tables = {"cases": self.cases, "orders": orders, "errors": shares, "kinds": kinds}
        tables |= {"arrivals": arrived, "explanations": explained}
        record.metrics({k: v for k, v in result.items() if "_T" not in k}, step=longest)
        record.write(tables, drawn)
        record.show(
            "small neurons: shares of all orders with over- and under-firing; widest range of counts", _by_T(orders)
        )
        record.show("unevenness of layers: rank correlation with their traits", explained)
        last = [row for row in kinds if row["T"] == longest]
        record.show(f"shares of neurons after T = {longest} steps", last)


def _case(
    name: str, weights: Sequence[float], trains: Sequence[str], theta: float = 1.0, start: float = 0.0
) -> list[Row]:
    try:
        words = bool(trains) and all(isinstance(word, str) for word in trains)
        require(words, "trains", list(trains), 'quoted words of 0 and 1, one for each input, such as ["10", "01"]')
        return trace(SmallNeuron(weights, theta, start, len(trains[0])), trains)
    except InvalidValue as error:
        raise InvalidValue(f"cases.{name}.{error.name}", error.value, error.allowed) from error


def _by_T(orders: Sequence[Row]) -> list[Row]:
    """Return a row for each small neuron, with T as columns."""
    neuron = ("weights", "theta", "start")
    rows: dict[tuple[Any, ...], Row] = {}
    for kind in ("over", "under", "widest"):
        for row in orders:
            key = tuple(row[name] for name in neuron)
            rows.setdefault(key, dict(zip(neuron, key, strict=True)))[f"{kind} T={row['T']}"] = row[kind]
    return list(rows.values())


def _kinds(layer: LayerError) -> dict[str, Any]:
    """Return the shares of a layer's neurons by kind, and the mean size of its errors in spikes."""
    shares = {kind: getattr(layer, kind) for kind in ("over", "under", "zeros", "saturated")}
    over = layer.over_spikes / layer.over if layer.over else 0.0
    under = layer.under_spikes / layer.under if layer.under else 0.0
    row = {"layer": layer.layer, "T": layer.T, "inside": 1 - sum(shares.values()), **shares}
    rms = {name: value**0.5 / layer.threshold for name, value in (("uneven", layer.unevenness), ("error", layer.error))}
    return row | {"spikes_over": over, "spikes_under": under} | rms


def kinds_figure(rows: Sequence[Row]) -> Figure:
    """Draw the share of each layer's neurons whose residual lies outside [0, theta), by kind, in a panel for each T."""
    steps, names = distinct(rows, "T"), list(layer_labels(distinct(rows, "layer")).values())
    count = len(steps)
    figure, axes_all = panels(count, count, 2.2 / count + 1.9, 1.8 + 0.24 * len(names), sharey=True)
    for axes, T in zip(axes_all, steps, strict=True):
        at, left = [row for row in rows if row["T"] == T], [0.0] * len(names)
        for kind, (label, color) in KINDS.items():
            axes.barh(names, [row[kind] for row in at], left=left, color=color, label=label)
            left = [a + row[kind] for a, row in zip(left, at, strict=True)]
        axes.set(title=f"T = {T}", xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
    axes_all[0].invert_yaxis()
    figure.supxlabel("share of neurons (the rest ends in [0, θ))")
    figure.legend(*axes_all[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def arrivals_figure(rows: Sequence[Row], names_of: Mapping[str, str]) -> Figure:
    """Draw for each layer, at the largest T, the unevenness error when the same spikes arrive in other orders, and the
    swing of the input current. `names_of`: {layer: label} of all layers.
    """
    T = max(row["T"] for row in rows)
    at = [row for row in rows if row["T"] == T]
    labels = {
        "uneven": "unevenness error, spikes (rms)",
        "swing": "swing of the current over time / θ",
        "trend": "later less earlier current / θ (rms)",
    }
    names = distinct(at, "arrival")
    figure, axes_all = panels(3, 3, 10 / 3, 1.6 + 0.26 * len(distinct(at, "layer")), sharey=True)
    for axes, (column, label) in zip(axes_all, labels.items(), strict=True):
        for name, style in zip(names, styles(len(names)), strict=True):
            of = [row for row in at if row["arrival"] == name]
            layers = [names_of[row["layer"]] for row in of]
            axes.plot([row[column] for row in of], layers, **style, label=name, linewidth=0.8, markersize=3)
        axes.set(xlabel=label)
        axes.set_xlim(left=0)
    axes_all[0].invert_yaxis()
    axes_all[0].set_title(f"the same spikes in other orders, T = {T}", loc="left", size=10)
    figure.legend(
        *axes_all[0].get_legend_handles_labels(),
        title="spikes arrive",
        loc="outside right center",
        frameon=False,
        fontsize=8,
    )
    return figure

"""`task=mitigations`: compare accuracy and cost of mitigations of the unevenness error at equal total steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from snnexp.analysis.style import GREY, distinct, panels, styles
from snnexp.build import unlike
from snnexp.conversion.measure import LayerError
from snnexp.errors import UserError, require
from snnexp.mitigation.base import Mitigation
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.base import CONVERTING
from snnexp.task.converting import Conversion, Converting, steps_of
from snnexp.training import Metrics

Row = dict[str, Any]


class Mitigations(Converting):
    """Convert, and test each mitigation in `compare` at each of timesteps, which are here the steps that each neuron
    runs, rehearsals included. A pair is left out if too few steps remain after the rehearsals (for averaged recordings:
    if these are not a multiple of the frames).

    `run` raises UserError as `task=convert` does, if `mitigation=` is set, and if nothing can be compared.
    """

    groups = tuple(group for group in CONVERTING if group != "mitigation")

    def __init__(
        self, compare: Mapping[str, Mitigation], val_images: int | None, test_images: int | None, layer_images: int
    ) -> None:
        super().__init__(val_images, test_images, layer_images)
        for name, mitigation in compare.items():
            require(not unlike(mitigation, Mitigation), f"compare.{name}", mitigation, "an option of mitigation=")
        self.compare = compare

    def objectives(self, session: Session) -> list[str]:
        each = [f"val/{name}_accuracy_T{t}" for t in steps_of(session) for name in self.compare]
        return ["val/accuracy", "val/ann_accuracy", *each]

    def run(self, session: Session, record: Record) -> Metrics:
        conversion = self.conversion(session, record)
        conversion.unmitigated("task=mitigations compares those in task.compare")
        conversion.integrating("task=mitigations")
        if not any(_left(conversion, m, total) for m in self.compare.values() for total in conversion.steps):
            none = "leaves no mitigation of task.compare a step after its rehearsal"
            raise UserError(f"timesteps={conversion.steps} {none}")
        return record.tracked(lambda: self._compared(conversion))

    def _compared(self, conversion: Conversion) -> Metrics:
        record, rows = conversion.record, list[Row]()
        conversion.load_ann()
        ann = conversion.ann_accuracies()
        result = dict(ann)
        for total in conversion.steps:
            for name, mitigation in self.compare.items():
                if T := _left(conversion, mitigation, total):
                    row = _tried(conversion, mitigation, T)
                    rows.append({"mitigation": name, "steps": total, "T": T, **row})
                    for split in conversion.splits:
                        result[f"{split}/{name}_accuracy_T{total}"] = row[f"{split}_accuracy"]
                        record.metrics({f"{split}/{name}_accuracy": row[f"{split}_accuracy"]}, step=total)
        result["val/accuracy"] = max(row["val_accuracy"] for row in rows)
        record.write({"mitigations": rows}, {"mitigations": mitigations_figure(rows, ann["test/ann_accuracy"])})
        title = f"mitigations, ANN: val {ann['val/ann_accuracy']:.4f}, test {ann['test/ann_accuracy']:.4f}"
        record.show(title, rows)
        return result


def _left(conversion: Conversion, mitigation: Mitigation, total: int) -> int:
    """Return the steps that count; 0 if there are too few, or only part of a recording."""
    T = total - mitigation.steps(0)
    return T if T % conversion.frames == 0 and max(1, mitigation.again) <= T else 0


def _tried(conversion: Conversion, mitigation: Mitigation, T: int) -> Row:
    plain_snn, source, _ = conversion.converted(T, calibrated=True)
    snn = mitigation.applied(plain_snn)
    layers, account = snn.examine(source, conversion.seen(), T)
    accuracy = {f"{split}_accuracy": conversion.accuracy(snn, split, [T])[T] for split in conversion.splits}
    cost = {"spikes": account.spikes, "energy_nj": account.energy_nj}
    return {"latency": account.latency, **accuracy, **cost, **_errors(layers)}


def _errors(layers: list[LayerError]) -> dict[str, float]:
    """Return means over layers: shares of neurons, and spikes too many or too few per neuron."""
    n = len(layers)
    return {
        "over": sum(layer.over for layer in layers) / n,
        "under": sum(layer.under for layer in layers) / n,
        "uneven": sum(layer.over_spikes + layer.under_spikes for layer in layers) / n,
    }


def mitigations_figure(rows: Sequence[Row], ann: float) -> Figure:
    """Draw test accuracy against the steps that each neuron runs, against latency, and against energy."""
    keys = {"steps": "steps a neuron works", "latency": "steps until the answer", "energy_nj": "energy, µJ"}
    names = distinct(rows, "mitigation")
    figure, axes_all = panels(3, 3, 11 / 3, 3.8, sharey=True)
    for axes, (key, label) in zip(axes_all, keys.items(), strict=True):
        unit = 1e-3 if key == "energy_nj" else 1
        for name, style in zip(names, styles(len(names)), strict=True):
            of = [row for row in rows if row["mitigation"] == name]
            x, y = [row[key] * unit for row in of], [row["test_accuracy"] for row in of]
            axes.plot(x, y, **style, label=name.replace("_", " "), linewidth=0.8, markersize=5)
        axes.axhline(ann, color=GREY, linestyle="--", label="ANN")
        axes.set(xlabel=label)
        if key != "energy_nj":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
    axes_all[0].set(ylabel="test accuracy")
    figure.legend(*axes_all[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure

"""`task=convert`: turn a trained ANN into an SNN and test it at every T of timesteps, beside the ANN."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from snnexp.analysis.style import BLUE, GREY, ORANGE, PURPLE, layer_labels, panels
from snnexp.build import build
from snnexp.calibration.base import Calibration
from snnexp.conversion.measure import LayerError
from snnexp.conversion.network import Converted
from snnexp.conversion.stored import save_network
from snnexp.errors import UserError
from snnexp.files import replace_by
from snnexp.record import Record
from snnexp.rundir import write_csv, write_json
from snnexp.session import Session
from snnexp.task.converting import Conversion, Converting, accuracy_figure
from snnexp.training import Metrics

log = logging.getLogger(__name__)
CURVES = {"before calibration": "plain", "SNN": "snn"}  # of the figure: label and metric


class Convert(Converting):
    """Replace the ANN's activations by the neurons of `conversion`; return accuracies, spikes and energy.

    `run` raises UserError for wrong values, missing data, and networks that cannot be converted faithfully.
    """

    def run(self, session: Session, record: Record) -> Metrics:
        self.check_corrections(session)
        conversion = self.conversion(session, record)
        return record.tracked(lambda: _measured(conversion))

    def check_corrections(self, session: Session) -> None:
        """Raise UserError if a calibration is chosen."""
        if build("calibration", session.config, Calibration).steps:
            chosen = f"calibration={session.choices['calibration']} belongs to task=calibrate"
            raise UserError(f"task=convert places neurons and corrects nothing: {chosen}")


def _measured(conversion: Conversion) -> Metrics:
    record = conversion.record
    conversion.load_ann()
    result = conversion.ann_accuracies()
    layers, done = list[LayerError](), list[dict[str, Any]]()
    for steps in conversion.groups():
        if conversion.calibration.steps:
            plain, _, _ = conversion.converted(steps[-1], calibrated=False)
            result |= conversion.accuracies(plain, steps, "plain")
        snn, source, records = conversion.converted(steps[-1], calibrated=True)
        if records.error is not None:
            result[f"calibration/output_error_T{steps[-1]}"] = records.error
        result |= conversion.accuracies(snn, steps, "snn")
        for t in steps:
            errors, _, cost = conversion.examined(source, snn, t)
            layers += errors
            result |= cost
        done += [{"T": steps[-1], **asdict(each)} for each in records]
        _save(snn.cpu(), record, steps[-1])
        record.write({f"{name}_T{snn.T}": rows for name, rows in snn.tables().items()}, {})
    result["val/accuracy"] = result[f"val/snn_accuracy_T{conversion.steps[-1]}"]  # the default objective
    _report(conversion, result, layers, done)
    record.tracker.model(snn)
    return result


def _save(snn: Converted, record: Record, T: int) -> None:
    """Write the network as a pickle and, if possible, as a file that cannot run code."""
    replace_by(record.folder / f"model_T{T}.pt", partial(torch.save, snn))
    try:
        save_network(snn, record.folder / f"network_T{T}.pt")
        record.artifact(f"network_T{T}.pt")
    except UserError as error:
        log.warning("network_T%d.pt was not written, only the pickle model_T%d.pt: %s", T, T, error)


def _report(conversion: Conversion, result: Metrics, layers: Sequence[LayerError], done: list[dict[str, Any]]) -> None:
    record, longest = conversion.record, conversion.steps[-1]
    record.metrics({k: v for k, v in result.items() if "_T" not in k}, step=longest)
    write_csv(record.folder / "layers.csv", [asdict(layer) for layer in layers])
    write_json(record.folder / "corrections.json", done)
    record.artifact("layers.csv", "corrections.json")
    curves = {
        label: {t: result[f"test/{what}_accuracy_T{t}"] for t in conversion.steps}
        for label, what in CURVES.items()
        if f"test/{what}_accuracy_T{longest}" in result
    }
    accuracy = accuracy_figure(curves, result["test/ann_accuracy"])
    record.write({}, {"accuracy": accuracy, "layers": layers_figure([row for row in layers if longest == row.T])})


def layers_figure(table: Sequence[LayerError]) -> Figure:
    """Draw for each layer the mean activations of ANN and SNN, the firing rate, the silent share, and the parts of the
    squared error.
    """
    names = list(layer_labels([layer.layer for layer in table]).values())
    figure, (means, rates, parts) = panels(3, 3, 11 / 3, 1.6 + 0.28 * len(table), sharey=True)
    means.plot([layer.ann_mean for layer in table], names, "o", color=GREY, label="ANN")
    means.plot([layer.snn_mean for layer in table], names, "x", color=BLUE, label="SNN")
    means.set(xlabel="mean activation")
    rates.plot([layer.firing_rate for layer in table], names, "o", color=BLUE, label="firing rate")
    rates.plot([layer.silent for layer in table], names, "o", color=ORANGE, label="silent neurons")
    rates.set(xlabel="share")
    kinds = {"unevenness": ORANGE, "quantisation": BLUE, "clipping": GREY, "propagated": PURPLE}
    for kind, color in kinds.items():
        errors = [getattr(layer, kind) / max(layer.ann_mean, 1e-12) ** 2 for layer in table]
        parts.plot(errors, names, "o", color=color, label=kind, markersize=4)
    parts.set(xlabel="mean squared error / (mean ANN activation)²")
    for axes in (means, rates, parts):
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    means.invert_yaxis()
    figure.suptitle(f"layers after T = {table[0].T} steps")
    return figure

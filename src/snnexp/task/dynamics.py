"""`task=dynamics`: check the equation that relates the mean postsynaptic potentials of neighbouring layers."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, fx

from snnexp.analysis.style import distinct, panels, shades
from snnexp.conversion.network import Converted
from snnexp.conversion.neuron import integrator
from snnexp.conversion.stateful import Frames
from snnexp.conversion.walk import CALIBRATION_ROWS
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.base import CONVERTING
from snnexp.task.converting import Conversion, Converting, steps_of
from snnexp.timefold import unfold
from snnexp.training import Metrics

Row = dict[str, Any]


class Dynamics(Converting):
    """Convert, and compare both sides of phi^l = W^l phi^(l-1) + b^l - (v^l(T) - v^l(0))/T; see docs/lab2.md.

    Returns the largest differences. `run` raises UserError as `task=convert` does, and if a mitigation is chosen.
    """

    groups = tuple(group for group in CONVERTING if group != "mitigation")

    def __init__(self, layer_images: int = 128) -> None:
        super().__init__(layer_images=layer_images)

    def objectives(self, session: Session) -> list[str]:
        return ["val/ann_accuracy", *(f"val/{name}_T{t}" for t in steps_of(session) for name in RESULTS)]

    def run(self, session: Session, record: Record) -> Metrics:
        conversion = self.conversion(session, record)
        conversion.unmitigated("task=dynamics checks integrate-and-fire neurons as they are")
        conversion.integrating("task=dynamics")
        return record.tracked(lambda: _checked(conversion))


RESULTS = {"residual": "residual", "remainder": "remainder", "remainder_inside": "inside"}  # metric: column


def _checked(conversion: Conversion) -> Metrics:
    record, rows = conversion.record, list[Row]()
    conversion.load_ann()
    result = conversion.ann_accuracies()
    for steps in conversion.groups():
        snn, _, _ = conversion.converted(steps[-1], calibrated=True)
        for t in steps:
            rows += residuals(snn, conversion.seen(), t)
    for t in conversion.steps:
        at = [row for row in rows if row["T"] == t]
        result |= {f"val/{name}_T{t}": max(row[column] for row in at) for name, column in RESULTS.items()}
        record.metrics({"val/residual": result[f"val/residual_T{t}"]}, step=t)
    record.write({"dynamics": rows}, {"dynamics": residuals_figure(rows)})
    shown = {name: {"layer": name} for name in distinct(rows, "layer")}
    for row in rows:
        shown[row["layer"]][f"T={row['T']}"] = row["residual"]
    record.show("largest difference of the two sides, in units of theta", list(shown.values()))
    return result


@torch.no_grad()
def residuals(snn: Converted, x: Tensor, T: int) -> list[dict[str, Any]]:
    """Compare both sides of the relation on every site after T steps, for inputs [N, ...]; in units of theta.

    `residual`: the largest difference over images and neurons. `remainder`: the root mean square of (v(T) - v(0))/T
    over all of them; `inside`: over those with v(T) in [0, theta), where it is a rounding error. The right side passes
    phi^(l-1), the means of the sites below, through the layers between; it uses only emitted spikes and potentials of
    the simulation.
    """
    flow = snn.flow
    zeros: Row = {"residual": 0.0, "remainder": 0.0, "inside": 0.0}
    found: dict[fx.Node, Row] = {site: {"layer": str(site.target), "T": T} | zeros for site in flow.sites}
    ended = dict.fromkeys(flow.sites, 0.0)
    for part in torch.split(x, max(1, CALIBRATION_ROWS[x.device.type] // T)):
        env, state, _ = snn.simulated(part, T)
        shown = [n for n in flow.nodes if isinstance(flow.module(n), Frames)]
        phi = {n: unfold(env[n], T).mean(0) for n in (*flow.sites, *shown)}
        for site, row in found.items():
            neuron, current = integrator(flow, site, "task=dynamics"), site.args[0]
            assert isinstance(current, fx.Node)
            between, known = flow.segment([current], [n for n in (*flow.sites, *shown, *flow.head) if n is not site])
            values = {n: phi[n] if n in phi else env[n] for n in known}
            flow.run(between, values)
            remainder = (state[site] - neuron.v_init) / T
            difference = phi[site] - (values[current] + neuron.bias - remainder)
            row["residual"] = max(row["residual"], float((difference.abs() / neuron.theta).max()))
            square, inside = (remainder / neuron.theta).square(), (state[site] >= 0) & (state[site] < neuron.theta)
            row["remainder"] += float(square.mean()) * len(part) / len(x)
            row["inside"] += float((square * inside).mean()) * len(part) / len(x)
            ended[site] += float(inside.float().mean()) * len(part) / len(x)
    for site, row in found.items():
        row["remainder"], row["inside"] = row["remainder"] ** 0.5, (row["inside"] / max(ended[site], 1e-12)) ** 0.5
    return list(found.values())


def residuals_figure(rows: Sequence[Row]) -> Figure:
    """Draw for each layer and T the difference of the two sides, and the last term of the relation: over all neurons,
    and over those with v(T) in [0, theta)."""
    names, steps = distinct(rows, "layer"), distinct(rows, "T")
    figure, axes_all = panels(3, 3, 11 / 3, 1.6 + 0.26 * len(names), sharey=True)
    labels = {
        "residual": "largest difference of the two sides / θ",
        "remainder": "(v(T) − v(0)) / (T θ), rms, all neurons",
        "inside": "the same, neurons with v(T) in [0, θ)",
    }
    for axes, (column, label) in zip(axes_all, labels.items(), strict=True):
        for T, color in zip(steps, shades(len(steps)), strict=True):
            values = [max(row[column], 1e-17) for row in rows if row["T"] == T]
            axes.plot(values, names, ".-", color=color, linewidth=0.8, label=f"T = {T}")
        axes.set(xscale="log", xlabel=label)
    axes_all[0].invert_yaxis()
    figure.legend(*axes_all[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure

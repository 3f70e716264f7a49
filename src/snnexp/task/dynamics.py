"""`task=dynamics`: mean postsynaptic potentials of neighbouring layers, their relation checked on every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from snnexp.analysis import figures, tables
from snnexp.conversion.network import Converted
from snnexp.conversion.neuron import integrator
from snnexp.conversion.stateful import Frames
from snnexp.conversion.walk import CALIBRATION_ROWS
from snnexp.errors import UserError
from snnexp.session import Session
from snnexp.task.convert import Conversion
from snnexp.terminal import rows_table
from snnexp.timefold import unfold
from snnexp.training import Metrics


def dynamics(session: Session, layer_images: int) -> Metrics:
    """Convert, and compare both sides of phi^l = W^l phi^(l-1) + b^l - (v^l(T) - v^l(0))/T; see docs/lab2.md.

    Returns the largest differences. Raises UserError as `task=convert` does, and with a mitigation.
    """
    if session.choices["mitigation"] != "none":
        raise UserError("task=dynamics checks integrate-and-fire neurons as they are: choose mitigation=none")
    conversion = Conversion(session, layer_images, layer_images, layer_images)
    conversion.integrating("task=dynamics")
    return session.tracked(lambda: _checked(conversion))


def _checked(conversion: Conversion) -> Metrics:
    session, rows = conversion.session, list[dict[str, Any]]()
    conversion.prepare()
    for steps in conversion.groups():
        snn, _, _ = conversion.converted(steps[-1], calibrated=True)
        for t in steps:
            rows += residuals(snn, conversion.seen(), t)
    result: Metrics = {}
    for t in conversion.steps:
        at = [row for row in rows if row["T"] == t]
        result |= {
            f"val/residual_T{t}": max(row["residual"] for row in at),
            f"val/remainder_T{t}": max(row["remainder"] for row in at),
            f"val/remainder_inside_T{t}": max(row["inside"] for row in at),
        }
        session.tracker.metrics({"val/residual": result[f"val/residual_T{t}"]}, step=t)
    tables.write({"dynamics": rows}, session.run_dir / "tables")
    figures.write({"dynamics": figures.dynamics(rows)}, session.run_dir / "figures")
    session.tracker.artifact(session.run_dir / "tables")
    session.tracker.artifact(session.run_dir / "figures")
    rows_table(
        "largest difference of the two sides, in units of theta",
        [
            {"layer": name} | {f"T={row['T']}": row["residual"] for row in rows if row["layer"] == name}
            for name in dict.fromkeys(row["layer"] for row in rows)
        ],
    )
    return result


@torch.no_grad()
def residuals(snn: Converted, x: Tensor, T: int) -> list[dict[str, Any]]:
    """Both sides of the relation on every site after T steps, for inputs [N, ...]; in units of theta.

    `residual`: the largest difference over images and neurons; `remainder`: root mean square of (v(T) - v(0))/T over
    all of them, `inside`: over those with v(T) in [0, theta), where it is rounding. The right side has phi^(l-1),
    the means of the sites below, through the layers between: of the simulation, what was emitted and the potentials.
    """
    flow = snn.flow
    found: dict[fx.Node, dict[str, Any]] = {
        site: {"layer": str(site.target), "T": T, "residual": 0.0, "remainder": 0.0, "inside": 0.0}
        for site in flow.sites
    }
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

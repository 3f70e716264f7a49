"""`task=mitigations`: what mitigations of the unevenness error recover, and what they cost, at equal total steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snnexp.analysis import figures, tables
from snnexp.conversion.measure import LayerError
from snnexp.errors import UserError
from snnexp.mitigation.base import Mitigation
from snnexp.session import Session
from snnexp.task.convert import Conversion
from snnexp.terminal import rows_table
from snnexp.training import Metrics


def mitigations(
    session: Session,
    compare: Mapping[str, Mitigation],
    val_images: int | None,
    test_images: int | None,
    layer_images: int,
) -> Metrics:
    """Convert once, then try each of `compare` with so many steps that, rehearsals included, each neuron works for
    each of timesteps; where too few are left for T (of averaged recordings: no multiple of their frames), that pair is
    left out.

    Raises UserError as `task=convert` does, with a mitigation of its own, and if nothing can be compared.
    """
    if session.choices["mitigation"] != "none":
        raise UserError("task=mitigations compares those in task.compare: choose mitigation=none")
    conversion = Conversion(session, val_images, test_images, layer_images)
    conversion.integrating("task=mitigations")
    if not any(_left(conversion, m, total) for m in compare.values() for total in conversion.steps):
        raise UserError(f"timesteps={conversion.steps} leaves no mitigation of task.compare a step after its rehearsal")
    return session.tracked(lambda: _compared(conversion, compare))


def _left(conversion: Conversion, mitigation: Mitigation, total: int) -> int:
    """Steps that count; 0: too few, or part of a recording."""
    T = total - mitigation.steps(0)
    return T if T % conversion.frames == 0 and max(1, mitigation.again) <= T else 0


def _compared(conversion: Conversion, compare: Mapping[str, Mitigation]) -> Metrics:
    session, rows = conversion.session, list[dict[str, Any]]()
    ann = conversion.prepare()
    result = dict(ann)
    for total in conversion.steps:
        for name, mitigation in compare.items():
            if T := _left(conversion, mitigation, total):
                plain, source, _ = conversion.converted(T, calibrated=True)
                snn = mitigation.applied(plain)
                found = {split: conversion.accuracy(snn, split, [T])[T] for split in ("val", "test")}
                layers, account = snn.examine(source, conversion.seen(), T)
                rows.append(
                    {
                        "mitigation": name,
                        "steps": total,
                        "T": T,
                        "latency": account.latency,
                        "val_accuracy": found["val"],
                        "test_accuracy": found["test"],
                        "spikes": account.spikes,
                        "energy_nj": account.energy_nj,
                        **_errors(layers),
                    }
                )
                for split, accuracy in found.items():
                    result[f"{split}/{name}_accuracy_T{total}"] = accuracy
                    session.tracker.metrics({f"{split}/{name}_accuracy": accuracy}, step=total)
    result["val/accuracy"] = max(row["val_accuracy"] for row in rows)
    tables.write({"mitigations": rows}, session.run_dir / "tables")
    figures.write({"mitigations": figures.mitigations(rows, ann["test/ann_accuracy"])}, session.run_dir / "figures")
    session.tracker.artifact(session.run_dir / "tables")
    session.tracker.artifact(session.run_dir / "figures")
    rows_table(f"mitigations, ANN: val {ann['val/ann_accuracy']:.4f}, test {ann['test/ann_accuracy']:.4f}", rows)
    return result


def _errors(layers: list[LayerError]) -> dict[str, float]:
    """Means over layers: shares of neurons, and spikes too many or too few per neuron."""
    n = len(layers)
    return {
        "over": sum(layer.over for layer in layers) / n,
        "under": sum(layer.under for layer in layers) / n,
        "uneven": sum(layer.over_spikes + layer.under_spikes for layer in layers) / n,
    }

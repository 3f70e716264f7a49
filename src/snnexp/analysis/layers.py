"""Values that were measured by layer after each epoch, as rows and as a figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from snnexp.analysis.style import distinct, panels, styles, whole

Row = dict[str, Any]


def layer_rows(history: Sequence[Mapping[str, float]], what: str, columns: Sequence[str]) -> list[Row]:
    """Return the metrics <what>/<column>/<layer> of all epochs as rows of epoch, layer and columns (nan if absent)."""
    named = [key.split("/", 2) for key in history[0] if key.startswith(f"{what}/")]
    layers = [parts[2] for column in columns for parts in named if parts[1] == column]
    return [
        {"epoch": epoch, "layer": layer, **{c: metrics.get(f"{what}/{c}/{layer}", math.nan) for c in columns}}
        for epoch, metrics in enumerate(history, 1)
        for layer in dict.fromkeys(layers)
    ]


def layer_figure(rows: Sequence[Row], columns: Sequence[str], title: str) -> Figure:
    """Draw a panel for each column: its value against the epoch, a line for each layer."""
    figure, axes_all = panels(len(columns), len(columns), 3.4, 3.2)
    layers = distinct(rows, "layer")
    for axes, column in zip(axes_all, columns, strict=True):
        for layer, style in zip(layers, styles(len(layers)), strict=True):
            of_layer = [row for row in rows if row["layer"] == layer and not math.isnan(row[column])]
            if of_layer:
                epochs, values = [row["epoch"] for row in of_layer], [row[column] for row in of_layer]
                axes.plot(epochs, values, **style, markersize=3, label=layer)
        axes.set(xlabel="epoch", title=column, ylim=(min(0, axes.get_ylim()[0]), None))
        whole(axes.xaxis)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure

"""The style of all figures: colours, lines and axes."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREY, PURPLE, BLACK = "#2a6f97", "#e07a1f", "#8a8a8a", "#7a4f9a", "#222222"
COLORS = (BLUE, ORANGE, PURPLE, "#3a8f5c", "#b5333c", GREY, BLACK, "#17a2b8")


def styles(count: int) -> list[dict[str, Any]]:
    """Return `count` pairs of colour and marker as keywords for `plot`; the first 56 differ."""
    pairs = zip(cycle(COLORS), cycle("osv^DPX"), range(count), strict=False)
    return [{"color": color, "marker": marker} for color, marker, _ in pairs]


def shades(count: int) -> list[Any]:
    """Return `count` colours from light to dark."""
    return [tuple(colormaps["viridis_r"](0.1 + 0.9 * k / max(count - 1, 1))) for k in range(count)]


def panels(
    count: int, columns: int, width: float, height: float, *, framed: bool = False, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels, `width` x `height` inches each, at most `columns` in a line, and its axes.

    The axes are `plain` unless `framed`. `options` are those of `Figure.subplots`.
    """
    columns = min(columns, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False, **options).flat)
    for unused in axes[count:]:
        unused.axis("off")
    if not framed:
        plain(*axes)
    return figure, axes[:count]


def layer_labels(names: Sequence[str]) -> dict[str, str]:
    """Return {name: label for axes} of all layers of a network, in order: without the `network.` that all have, and
    numbered where a model has no names.

    `network.5`, the third activation of a Sequential, is `layer 3`; `network.stem.act` is `stem.act`.
    """
    inner = {name: name.removeprefix("network.") for name in names}
    return {
        name: f"layer {i}" if short.replace(".", "").isdigit() else short
        for i, (name, short) in enumerate(inner.items(), 1)
    }


def distinct(rows: Iterable[Mapping[str, Any]], key: str) -> list[Any]:
    """Return the distinct values of a column in the order of the rows."""
    return list(dict.fromkeys(row[key] for row in rows))


def whole(axis: Axis) -> None:
    """Put the ticks at whole numbers."""
    axis.set_major_locator(MaxNLocator(integer=True))


def plain(*axes: Axes) -> None:
    """Remove the frame above and on the right."""
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)

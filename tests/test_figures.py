"""Figures draw all that is compared, however much it is, and nothing that is not there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from snnexp.analysis.style import styles
from snnexp.analysis.temperature import temperature
from snnexp.task.converting import accuracy_figure
from snnexp.task.dvs import ways_figure
from snnexp.task.mitigations import mitigations_figure
from snnexp.task.unevenness import arrivals_figure


def labels(axes: object) -> list[str]:
    return axes.get_legend_handles_labels()[1]


@pytest.mark.parametrize("count", [1, 10, 30])
def test_every_mitigation_that_is_compared_is_drawn(count: int) -> None:
    row = {"T": 4, "test_accuracy": 0.5, "energy_nj": 1.0, "latency": 4}
    rows = [row | {"mitigation": f"m{k}", "steps": steps} for k in range(count) for steps in (4, 8)]
    figure = mitigations_figure(rows, 0.9)
    for axes in figure.axes:
        assert labels(axes) == [f"m{k}" for k in range(count)] + ["ANN"]


@pytest.mark.parametrize("count", [5, 6, 9])
def test_any_number_of_orders_of_arrival_is_drawn(count: int) -> None:
    row = {"T": 4, "uneven": 0.1, "swing": 0.2, "trend": 0.3}
    rows = [row | {"layer": f"l{i}", "arrival": f"order {k}"} for i in range(3) for k in range(count)]
    figure = arrivals_figure(rows, {f"l{i}": f"layer {i}" for i in range(3)})
    assert labels(figure.axes[0]) == [f"order {k}" for k in range(count)]
    assert all(len(axes.lines) == count for axes in figure.axes)


def test_any_number_of_ways_and_of_curves_is_drawn() -> None:
    row = {"network": "SNN", "steps": 4, "accuracy": 0.5, "sd": 0.1, "train_s": 1.0}
    assert len(labels(ways_figure([row | {"way": f"way {k}"} for k in range(7)]).axes[0])) == 7
    curves = {f"network {k}": {1: 0.1, 2: 0.2} for k in range(9)}
    assert labels(accuracy_figure(curves, 0.9).axes[0]) == ["ANN", *curves]


def test_the_styles_of_many_lines_differ() -> None:
    assert len({tuple(style.items()) for style in styles(56)}) == 56


def test_only_adaptive_surrogates_have_a_figure_of_their_temperature() -> None:
    history = [{"train/b": 1.0, "train/batches": 3.0, "train/brightness": 0.5}]
    assert temperature(nn.Linear(1, 1), history) == {}
    net = nn.Linear(1, 1)
    net.surrogate = SimpleNamespace()  # a surrogate that does not adapt
    assert temperature(net, history) == {}

"""What figures say: labels and answers, marks where a curve is cut, names of layers, the curves of a run."""

from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure
from spikingjelly.activation_based.surrogate import Sigmoid

from snnexp.analysis import figures
from snnexp.analysis.comparison import parameter_figure
from snnexp.analysis.style import layer_labels
from snnexp.surrogate.power import Power
from snnexp.task.unevenness import arrivals_figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_derivative_that_is_cut_says_its_height() -> None:
    figure = figures.surrogates([("P(x)", Power(0.5)), ("sigmoid", Sigmoid(4.0))])
    assert texts(figure) == ["g'(x) is cut here:\nit rises to 10"]
    assert figure.get_supylabel() == "value"


def test_a_raster_says_what_was_answered() -> None:
    figure = figures.rasters(torch.ones(4, 2, 3, 3), {"readout": torch.eye(4)}, "label 5, answered 3 (wrong)")
    assert figure.get_suptitle() == "spikes of one test recording: label 5, answered 3 (wrong)"
    still = figures.rasters(torch.ones(1, 3, 3), {"readout": torch.eye(4)}, "label 5, answered 5 (right)")
    assert still.get_suptitle().startswith("spikes of one test image")


def test_potentials_are_those_of_neurons_that_sometimes_fire() -> None:
    spikes = torch.zeros(4, 5)
    spikes[:, 0], spikes[:2, 3] = 1, 1  # always; half of the time; the others never
    figure = figures.potentials({"neuron1": (spikes * 1.5, spikes, 1.25)})
    (axes,) = figure.axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels[0] == "neuron 3"
    assert labels[-1] == "threshold 1.25"


def test_layers_have_names_that_agree_between_figures() -> None:
    names = ["network.2", "network.5", "network.9"]
    assert layer_labels(names) == {"network.2": "layer 1", "network.5": "layer 2", "network.9": "layer 3"}
    assert layer_labels(["network.stem.act", "block1.0.act"]) == {
        "network.stem.act": "stem.act",
        "block1.0.act": "block1.0.act",
    }
    values = {"uneven": 0.1, "swing": 0.2, "trend": 0.3}
    rows = [{"T": 4, "layer": name, "arrival": "evenly", **values} for name in names[1:]]  # the first is not measured
    figure = arrivals_figure(rows, layer_labels(names))
    figure.draw_without_rendering()
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["layer 2", "layer 3"]
    assert figure.legends, "the legend lies beside the panels"
    assert not figure.axes[0].get_legend()


@pytest.mark.parametrize(("values", "panels"), [(1, 1), (2, 3)])
def test_functions_with_one_value_share_a_panel(values: int, panels: int) -> None:
    points = {name: [(float(v), [0.9, 0.92]) for v in range(1, values + 1)] for name in ("sigmoid", "sine", "power")}
    assert len([axes for axes in parameter_figure(points).axes if axes.axison]) == panels


def test_the_curves_of_a_run_are_figures() -> None:
    history = [{"train/loss": 1 / e, "val/loss": 2 / e, "train/accuracy": 0.5, "val/accuracy": 0.4} for e in (1, 2, 3)]
    figure = figures.learning(history, best=2)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert figure.axes[0].get_legend_handles_labels()[1] == ["training", "validation", "best epoch: 2"]
    (axes,) = figures.accuracy_at_t([0.1, 0.5], [0.2, 0.6]).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.1, 0.5], [0.2, 0.6]]

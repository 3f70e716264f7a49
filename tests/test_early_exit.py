"""Early exit: the step at which each image stops, and the task that measures it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from snnexp.conversion.early_exit import exits
from snnexp.task.early_exit import EarlyExit
from snnexp.testing import TaskContract
from test_conversion import TINY


def test_each_image_stops_where_it_is_sure() -> None:
    torch.manual_seed(0)
    outputs = [3 * torch.randn(50, 4) for _ in range(6)]
    for confidence in (0.5, 0.9, 0.999):
        t, classes = exits(outputs, confidence)
        for n in range(50):
            sure = [k for k in range(6) if float(outputs[k][n].softmax(0).max()) > confidence]
            stop = sure[0] if sure else 5
            assert int(t[n]) == stop + 1
            assert int(classes[n]) == int(outputs[stop][n].argmax())


def test_a_confidence_of_1_is_the_full_run() -> None:
    outputs = [100 * torch.randn(20, 4) for _ in range(5)]  # a softmax of exactly 1 does not stop it
    t, classes = exits(outputs, 1.0)
    assert t.tolist() == 20 * [5]
    assert torch.equal(classes, outputs[-1].argmax(1))


@pytest.mark.parametrize(("confidences", "within"), [([1.5], 0.3), ([], 0.3), ([0.9], -1)])
def test_wrong_values_are_refused(confidences: list[float], within: float) -> None:
    with pytest.raises(ValueError, match=r"confidences|within"):
        EarlyExit(confidences, within)


class TestEarlyExit(TaskContract):
    command = (
        "task=early_exit",
        "timesteps=[2,8]",
        "calibration=light",
        "task.confidences=[0.2,0.6,0.95]",
        *(setting for setting in TINY if "layer_images" not in setting),
    )

    def kept(self, run: Path, result: dict[str, float]) -> None:
        rows = list(csv.DictReader((run / "tables" / "early_exit.csv").open()))
        for split in ("val", "test"):
            own = [row for row in rows if row["split"] == split]
            assert [float(row["confidence"]) for row in own] == [0.2, 0.6, 0.95, 1]
            steps = [float(row["steps"]) for row in own]
            assert steps == sorted(steps)
            assert steps[-1] == 8
            assert float(own[-1]["accuracy"]) == pytest.approx(result[f"{split}/snn_accuracy_T8"])
        assert result["val/accuracy"] >= result["val/snn_accuracy_T8"] - 0.003 - 1e-9
        assert 1 <= result["test/exit_steps"] <= 8
        assert (run / "figures" / "early_exit.png").stat().st_size > 5000
        assert json.loads((run / "run.json").read_text())

"""The tables that commands print: T as columns, aligned, and the summaries of sweeps in two forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from snnexp.sweep.parent import Parent
from snnexp.terminal import closing_table

CLOSED = """\
convert: mlp on digits, seed 0
┌───────────────────┬─────────┐
│ test/ann_accuracy │ 0.9889  │
│ neurons           │ 6144    │
│ val/ann_macs      │ 1495552 │
└───────────────────┴─────────┘
┏━━━━━━━━━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━┓
┃                   ┃  T = 4 ┃ T = 16 ┃
┡━━━━━━━━━━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━┩
│ test/snn_accuracy │ 0.9806 │ 0.9917 │
│ val/spikes        │   2599 │  95590 │
│ val/early         │    0.5 │        │
└───────────────────┴────────┴────────┘
  results  outputs/runs/1
"""
PRINTED = """
┏━━━━━━━━━━━┳━━━┳━━━━━━━━━━━━━━┓
┃ surrogate ┃ n ┃ val/accuracy ┃
┡━━━━━━━━━━━╇━━━╇━━━━━━━━━━━━━━┩
│ a|b       │ 2 │ 0.9 ± 0.01   │
│ sine      │ 1 │ 0.8          │
└───────────┴───┴──────────────┘
best: a|b; run it with snnexp experiment=best
"""
MARKDOWN = """\
| surrogate | n | val/accuracy |
| --- | --- | --- |
| a\\|b | 2 | 0.9 ± 0.01 |
| sine | 1 | 0.8 |

best: a|b; run it with `snnexp experiment=best`
"""


def test_a_conversion_closes_with_T_as_columns(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"test/ann_accuracy": 0.98889, "neurons": 6144, "val/ann_macs": 1495552.0, "test/snn_accuracy_T4": 0.98056}
    result |= {"test/snn_accuracy_T16": 0.9917, "val/spikes_T4": 2598.7, "val/spikes_T16": 95590.2, "val/early_T4": 0.5}
    closing_table("convert: mlp on digits, seed 0", result, {"results": "outputs/runs/1"})
    assert capsys.readouterr().out == CLOSED


def test_a_sweep_prints_aligned_tables_and_keeps_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config: dict[str, Any] = {"tracking": {"_target_": "snnexp.tracking.Nothing"}}
    parent = Parent(config, tmp_path, "a", {}, {})
    rows: list[dict[str, Any]] = [
        {"surrogate": "a|b", "n": 2, "val/accuracy": 0.9, "val/accuracy std": 0.01},
        {"surrogate": "sine", "n": 1, "val/accuracy": 0.8},
    ]
    parent.publish([rows, "best: a|b; run it with `snnexp experiment=best`"])
    assert capsys.readouterr().out.startswith(PRINTED)
    assert (tmp_path / "summary.md").read_text() == MARKDOWN

"""Draw docs/conversion.png from the table of conversions in docs/results.md (`make tables`)."""

from __future__ import annotations

import re
from pathlib import Path

from snnexp.analysis.style import GREY, panels, plain, styles

DOCS = Path(__file__).parent
ANN = 80.65  # %, of the same network on the same images


def table() -> dict[str, dict[int, float]]:
    """Return {method: {T: accuracy in %}}: the rows without differences."""
    lines = (DOCS / "results.md").read_text().partition("| combination | T = 4")[2].splitlines()
    steps = [int(t) for t in re.findall(r"T = (\d+)", "T = 4" + lines[0])]
    found = {}
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if "±" not in line:
            found[name] = {t: float(cell) for t, cell in zip(steps, cells, strict=True) if cell}
    return found


def main() -> None:
    curves = table()
    figure, (axes,) = panels(1, 1, 7.2, 3.6)
    axes.axhline(ANN, color=GREY, linestyle="--", linewidth=1, label="ANN")
    for (name, curve), style in zip(curves.items(), styles(len(curves)), strict=True):
        axes.plot(list(curve), list(curve.values()), **style, markersize=4, label=name.replace("_", " "))
    axes.set_xscale("log", base=2)
    steps = sorted({t for curve in curves.values() for t in curve})
    axes.set_xticks(steps, [str(t) for t in steps])
    axes.set(xlabel="time steps T", ylabel="test accuracy, %", title="ResNet-20 on CIFAR-10 as a spiking network")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    plain(axes)
    figure.savefig(DOCS / "conversion.png", dpi=110)


if __name__ == "__main__":
    main()

"""`task=early_exit`: accuracy of a converted network against the mean number of steps, when sure images stop early."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from snnexp.analysis.style import BLUE, GREY, ORANGE, panels
from snnexp.conversion.early_exit import Exit, measure_exits
from snnexp.errors import number, require
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.converting import Conversion, Converting
from snnexp.training import Metrics


class EarlyExit(Converting):
    """Convert (and calibrate), then stop each image when its softmax passes one of `confidences` (0 to 1), at the
    largest of timesteps at the latest.

    The confidence of the result is chosen on validation images: that with the fewest steps whose accuracy is at most
    `within` percentage points below that of the full run. Raises InvalidValue; `run` raises UserError as task=convert
    does.
    """

    def __init__(
        self, confidences: Sequence[float], within: float, val_images: int | None = None, test_images: int | None = None
    ) -> None:
        super().__init__(val_images, test_images)
        require(isinstance(confidences, list) and bool(confidences), "confidences", confidences, "a list of numbers")
        shares = {number("confidences", c, "numbers from 0 to 1", at_least=0, at_most=1) for c in confidences}
        self.confidences = sorted(shares | {1.0})  # with 1, no image exits before T
        self.within = number("within", within, "percentage points >= 0", at_least=0)

    def objectives(self, session: Session) -> list[str]:
        return ["val/accuracy", "val/exit_steps", "val/ann_accuracy"]

    def run(self, session: Session, record: Record) -> Metrics:
        conversion = self.conversion(session, record)
        conversion.integrating("task=early_exit")
        return record.tracked(lambda: self._measured(conversion))

    def _measured(self, conversion: Conversion) -> Metrics:
        conversion.load_ann()
        T = conversion.steps[-1]
        snn, _, _ = conversion.converted(T, calibrated=True)
        size = conversion.session.trainer.eval_batch_size
        found = {
            name: measure_exits(
                conversion.whole(snn), split, T, self.confidences, size, conversion.device, conversion.limits[name]
            )
            for name, split in conversion.splits.items()
        }
        chosen = self._chosen(found["val"])
        result = conversion.ann_accuracies() | {"exit_confidence": self.confidences[chosen]}
        for name, rows in found.items():
            result |= {f"{name}/accuracy": rows[chosen].accuracy, f"{name}/exit_steps": rows[chosen].steps}
            result[f"{name}/snn_accuracy_T{T}"] = rows[-1].accuracy
        table = [{"split": name} | row._asdict() for name, rows in found.items() for row in rows]
        figure = exits_figure(found, result["test/ann_accuracy"], self.confidences[chosen])
        conversion.record.write({"early_exit": table}, {"early_exit": figure})
        conversion.record.metrics({k: v for k, v in result.items() if "_T" not in k}, step=T)
        return result

    def _chosen(self, rows: Sequence[Exit]) -> int:
        """Return the index of the row with the fewest steps whose accuracy is within the limit of the full run's."""
        enough = [n for n, row in enumerate(rows) if 100 * (rows[-1].accuracy - row.accuracy) <= self.within + 1e-9]
        return min(enough, key=lambda n: rows[n].steps)


def exits_figure(found: Mapping[str, Sequence[Exit]], ann: float, chosen: float) -> Figure:
    """Draw test accuracy against the mean number of steps, with the chosen confidence marked, and the ANN's level."""
    figure, (axes,) = panels(1, 1, 6, 3.6)
    rows = found["test"]
    axes.axhline(ann, color=GREY, linestyle="--", label="ANN")
    axes.plot([row.steps for row in rows], [row.accuracy for row in rows], "o-", color=BLUE, label="SNN, early exit")
    (mark,) = (row for row in rows if row.confidence == chosen)
    label = f"confidence {chosen:g}, chosen on validation images"
    axes.plot(mark.steps, mark.accuracy, "D", color=ORANGE, markersize=8, label=label)
    axes.set(xlabel="mean number of steps of an image", ylabel="test accuracy")
    axes.legend(frameon=False)
    return figure

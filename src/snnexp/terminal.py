"""Terminal output: progress bars (on stderr) during a run, tables (on stdout) at its end."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from snnexp.trial.job import Job

if TYPE_CHECKING:
    from snnexp import training

# Names and paths are shown as they are, without rich's markup: `[b]`, `:smile:`.
AS_IT_IS: Any = {"markup": False, "emoji": False, "highlight": False}
AT_T = re.compile(r"(?P<name>.+)_T(?P<T>\d+)")
console = Console(stderr=True, **AS_IT_IS)


def quiet() -> bool:
    """Return whether other jobs of a sweep write to the same terminal."""
    job = Job.current()
    return job is not None and job.quiet


class _Bar:
    """A progress bar, shown while its `with` block runs."""

    def __init__(self, *columns: ProgressColumn | str, show: bool = True) -> None:
        self.bar = Progress(
            *columns, console=console, transient=True, disable=not (show and console.is_terminal) or quiet()
        )

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


class EpochBar(_Bar):
    """A progress bar over the steps of all epochs, and a line per finished epoch."""

    def __init__(self, epochs: int, *, show: bool) -> None:
        self.epochs, self.show, self._printed, self._updated = epochs, show, 0, 0.0
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn())
        super().__init__("epoch {task.fields[epoch]}", *columns, show=show)
        self.task = self.bar.add_task("training", total=None, epoch=f"1/{epochs}")

    def step(self, progress: training.Progress, steps: int) -> None:
        """Move the bar, at most every 0.1 s; `steps` is the number of steps per epoch."""
        now = time.monotonic()
        if now - self._updated > 0.1:
            self._updated = now
            done, epoch = progress.epoch * steps + progress.step, f"{progress.epoch + 1}/{self.epochs}"
            self.bar.update(self.task, completed=done, total=self.epochs * steps, epoch=epoch)

    def epoch(self, progress: training.Progress) -> None:
        """Print a line for each epoch that finished since the last call."""
        if self.show:
            for number, m in list(enumerate(progress.history, 1))[self._printed :]:
                mark = "  best so far" if number - 1 == progress.best_epoch else ""
                train = f"loss {m['train/loss']:.4f}   accuracy {m['train/accuracy']:.3f}"
                val = f"val loss {m['val/loss']:.4f}   val accuracy {m['val/accuracy']:.3f}"
                console.print(f"epoch {number:>3}/{self.epochs}   {train}   {val}{mark}", soft_wrap=True)
        self._printed = len(progress.history)


def closing_table(title: str, metrics: Mapping[str, float], places: Mapping[str, object]) -> None:
    """Print the final metrics, and the places of the results, to stdout. Metrics `<name>_T<number>`, of T time steps,
    are a table with T as columns.
    """
    of_t = {name: match for name in metrics if (match := AT_T.fullmatch(name))}
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in ((name, value) for name, value in metrics.items() if name not in of_t):
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) and abs(value) < 1e4 else _short(value))
    out = Console(soft_wrap=True, **AS_IT_IS)
    out.print(table)
    if of_t:
        steps = sorted({int(match["T"]) for match in of_t.values()})
        named = dict.fromkeys(match["name"] for match in of_t.values())
        cells = [{"": name} | {f"T = {t}": metrics.get(f"{name}_T{t}", "") for t in steps} for name in named]
        rows_table("", cells)
    for name, place in places.items():
        out.print(f"{name:>9}  {place}")


def rows_table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows with the same keys as a table with these keys as its header, to stdout."""
    table = Table(title=title or None, title_justify="left")
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_short(v) for v in row.values()))
    Console(soft_wrap=True, width=1000, **AS_IT_IS).print(table)  # never wrapped


def _short(value: object) -> str:
    """Return a number with a fraction rounded to 4 significant digits, without an exponent if it fits."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


class LayerBar(_Bar):
    """A progress bar over the layers of a walk; `report` is a callback for `snnexp.conversion.walk`."""

    def __init__(self, title: str) -> None:
        layer = TextColumn("{task.fields[layer]}", markup=False)
        super().__init__("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), layer)
        self.task = self.bar.add_task(title, total=None, layer="")

    def report(self, done: int, layers: int, name: str) -> None:
        """Show that `done` of `layers` are finished, the last one called `name`."""
        self.bar.update(self.task, completed=done, total=layers, layer=name)

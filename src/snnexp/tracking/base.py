"""The protocol of a tracker, and the tracker that records nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from snnexp.errors import UserError

if TYPE_CHECKING:
    from torch import nn

Status = Literal["FINISHED", "FAILED", "KILLED", "PRUNED"]
KEY_TAG, STATUS_TAG, PARENT_TAG = "snnexp.key", "status", "mlflow.parentRunId"
BY_KEY = "snnexp.key="  # begins the `link` to a run whose id is not known yet
SWEEP_TAG = "snnexp.sweep"  # of a run that is nested in that of a trial: the run id of the sweep
WEIGHTS = "best.pt"


class Tracker(Protocol):
    """A recorder of runs, one run at a time. Picklable, so that a data-parallel rank can report."""

    @property
    def run_id(self) -> str | None:
        """The id of the run in MLflow; None until the store was reached."""

    @property
    def link(self) -> str | None:
        """The `parent` for runs nested in this one: its id or, until the store was reached, BY_KEY and its key."""

    @property
    def place(self) -> str:
        """The place where the user finds the run, as text."""

    def check(self) -> None:
        """Raise UserError if results could never be sent. Called before anything slow begins."""

    def start(
        self,
        run_dir: Path,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        parent: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin or resume the run that belongs to `run_dir`; `parent` is the link to that of its sweep, and `data` the
        identity of its dataset: `name`, `digest`, and the numbers of samples.

        If the store is unavailable, the run begins in `run_dir` only. Raises UserError if the store refuses it.
        """

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record values. A (metric, step) that was recorded before, even by a killed process, is ignored."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or directory of the run directory; it is sent to `folder` of the run, under its own name."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags; a later value replaces an earlier one."""

    def model(self, module: nn.Module) -> None:
        """Record a module that is on the CPU, for `mlflow.pytorch.load_model("runs:/<run_id>/model")`."""

    def weights(self, run_id: str, to: Path) -> None:
        """Download `best.pt` of an earlier run into the folder `to`, without reading it.

        Raises UserError if there is none.
        """

    def flush(self) -> None:
        """Send what was recorded. Raises nothing if the store is unavailable."""

    def finish(self, status: Status) -> None:
        """Send the rest and close the run; do nothing if no run was started."""


class Nothing:
    """The tracker of `tracking=none`: it discards everything."""

    run_id: str | None = None
    link: str | None = None
    place = "nowhere (tracking=none)"

    def check(self) -> None: ...
    def start(
        self,
        run_dir: Path,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        parent: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None: ...
    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def artifact(self, path: Path, folder: str = "") -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def model(self, module: nn.Module) -> None: ...
    def weights(self, run_id: str, to: Path) -> None:
        raise UserError(f"checkpoint=runs:/{run_id} is looked up in MLflow: tracking=none has no runs")

    def flush(self) -> None: ...
    def finish(self, status: Status) -> None: ...

"""Hydra callbacks: a check of the output folder, and the parent run of a grid."""

from __future__ import annotations

import sys
import tempfile
import uuid
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from snnexp.config import folder_of
from snnexp.errors import UserError

if TYPE_CHECKING:
    from snnexp.sweep.parent import Parent
    from snnexp.sweep.watch import Watch
    from snnexp.tracking import Status


class Outputs(Callback):
    """Check that `outputs_dir` is writable, before Hydra creates directories there and fails with a traceback."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the output folder, and refuse a study without -m: Hydra would run one job only. Raises SystemExit."""
        if config.hydra.sweeper.get("n_trials") is not None:
            _refuse("a study consists of many runs: start it with snnexp -m (hydra.sweeper.n_trials is set)")
        self._check(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the output folder. Raises SystemExit."""
        self._check(config)

    def _check(self, config: DictConfig) -> None:
        try:
            folder = folder_of(config, "outputs_dir")
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except UserError as error:  # Hydra turns exceptions of a callback into warnings, but not SystemExit
            _refuse(str(error))
        except OSError as error:
            _refuse(f"cannot write to outputs_dir={folder}: {error.strerror}")


class Grid(Callback):
    """The parent run of a grid, in which its jobs are nested, and its summary. (The sweeper does this for a study.)"""

    open: Grid | None = None  # for `close_grid`: Hydra calls on_multirun_end only after success

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything behind: launchers send Hydra's callbacks to the processes of jobs, which need none of it."""
        return {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the run if this is a grid. The sweeper reports the error if its jobs cannot be composed."""
        from snnexp.trial.job import Job

        self.config, self.loader = config, GlobalHydra.instance().config_loader()
        settings = config.hydra.sweeper
        if settings.get("n_trials") is not None or (varied := self._varied()) is None:
            return
        try:
            from snnexp.sweep.direction import directions
            from snnexp.sweep.progress import live

            self.lower = "minimize" in directions(config.objective, settings.get("direction"))[:1]
            self._start(varied)
        except UserError as error:
            _refuse(str(error))
        basic = str(config.hydra.launcher._target_).endswith("BasicLauncher")
        parallel = not basic or (settings.get("parallel") or 1) > 1
        config.hydra.overrides.hydra.append(
            Job(self.parent.run_id, varied, quiet=parallel or live(), sweep=str(self.parent.folder)).override
        )
        Grid.open = self

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the summary and close the run."""
        self.close("FINISHED")

    def watched(self) -> Watch:
        """Return a context manager that shows the progress of the jobs."""
        from snnexp.config import listed
        from snnexp.sweep.watch import Watch

        metric = next(iter(listed(self.config.objective)), "")
        return Watch(self.parent.folder, self.count, metric, self.lower)

    def close(self, status: Status) -> None:
        """Write a summary of the jobs so far, and close the run."""
        if Grid.open is not self:
            return
        Grid.open = None
        try:
            self._summarize()
        finally:
            self.parent.close(status)

    def _start(self, varied: list[str]) -> None:
        from snnexp.config import absolute, without_hydra
        from snnexp.sweep.parent import Parent
        from snnexp.sweep.starts import digest_of, key_of, note, starts

        absolute(self.config)
        plain = without_hydra(self.config, resolve=True)
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        digest = digest_of(plain, varied)
        before = starts(Path(str(self.config.outputs_dir)), digest) if plain["resume"] else []
        self.starts = [*(start for start in before if start != folder), folder]
        tags, key = {"task": "sweep", "sweep": "grid"}, key_of(self.starts) or uuid.uuid4().hex
        name = " x ".join(varied)
        known = {"name": name, "wanted": self.count, "storage": None, "lower": self.lower}
        self.parent: Parent = Parent(plain, folder, name, self.ranges, tags, key, listed=known)
        self.parent.__enter__()
        note(folder, digest)

    def _varied(self) -> list[str] | None:
        """Return the keys that vary; None if the grid cannot be composed."""
        parser = OverridesParser.create(config_loader=self.loader)
        try:
            if space := self.config.hydra.sweeper.get("space"):
                from hydra_plugins.snnexp_optuna._grid import jobs  # late: optuna

                arguments = list(self.config.hydra.overrides.task)
                found, self.ranges = jobs(space, self.config, self.loader, arguments)
                self.count = len(found)
                return list(self.ranges)
            overrides = parser.parse_overrides(list(self.config.hydra.overrides.task))
            swept = [o for o in overrides if o.is_sweep_override()]
            fixed = [o for o in overrides if not o.is_sweep_override() and not o.is_delete()]
            first = {o.get_key_element(): o.get_value_element_as_str() for o in fixed}
            first |= {o.get_key_element(): next(o.sweep_string_iterator()) for o in swept}
            deleted = [str(o.input_line) for o in overrides if o.is_delete()]
            for o in swept:
                for value in o.sweep_string_iterator():
                    job = first | {o.get_key_element(): value}
                    self.loader.load_sweep_config(self.config, [*deleted, *(f"{k}={v}" for k, v in job.items())])
        except Exception:
            return None
        self.ranges = {o.key_or_group: str(o.input_line).split("=", 1)[1] for o in swept}
        self.count = prod(len(list(o.sweep_string_iterator())) for o in swept)
        return list(self.ranges)

    def _summarize(self) -> None:
        from snnexp.config import listed
        from snnexp.files import replace_by
        from snnexp.rundir import write_csv
        from snnexp.sweep import summary
        from snnexp.sweep.command import experiment_command
        from snnexp.sweep.experiment import experiment, threads_of, write_experiment
        from snnexp.sweep.starts import jobs

        names = listed(self.config.objective)
        folder, tracker = self.parent.folder, self.parent.tracker
        found = jobs(self.starts)
        if not found:
            return
        rows = summary.table(found, names, self.lower)
        write_csv(folder / "summary.csv", rows)
        text: list[Any] = [rows]
        if group := summary.best(found, names[0], self.lower):
            winner, (mean, error) = group[0], summary.mean(group, names[0])
            comment = f"{winner.name}: {names[0]} {winner.metrics[names[0]]:.4g}"
            overrides = [*winner.overrides, *threads_of(winner.folder)]
            write_experiment(folder, "best", experiment(self.loader, self.config, overrides, comment))
            over = (
                f" (mean of {len(group)} seeds {mean:.4g}, standard error {error:.2g}: the best mean)"
                if len(group) > 1
                else ""
            )
            command = experiment_command(self.config, folder, "best")
            text.append(f"best: {comment}{over}; run it with `{command}`")
            tracker.tags({"best": winner.name, "best.run_id": winner.run_id or ""})
            tracker.metrics({f"best/{names[0]}": mean}, step=len(found))
            (folder / "figures").mkdir(exist_ok=True)
            for name in (n for n in dict.fromkeys([*names, "test/accuracy"]) if any(n in c.metrics for c in found)):
                draw = partial(summary.figure(found, name).savefig, format="png", dpi=120)
                replace_by(folder / "figures" / f"{name.replace('/', '_')}.png", draw)
        self.parent.publish(text, "summary.csv")


def close_grid(status: Status) -> None:
    """Close the run of a grid that failed or was interrupted."""
    if Grid.open is not None:
        Grid.open.close(status)


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(1)

"""`task=sweeps`: the sweeps under `outputs_dir`, with their state, best and the command to go on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snnexp.config import listed
from snnexp.errors import UserError
from snnexp.files import LOCK, read_json
from snnexp.lock import try_lock
from snnexp.masking import is_masked
from snnexp.record import Record
from snnexp.session import Session
from snnexp.sweep import summary
from snnexp.sweep.parent import SWEEP
from snnexp.task.base import Task
from snnexp.terminal import rows_table
from snnexp.training import Metrics
from snnexp.trial.counted import counts
from snnexp.trial.storage import file, open_storage


class Sweeps(Task):
    """List the grids and studies under `outputs_dir`, running and newest first, with the commands to go on.

    The trials of a study are read from its storage if that is a file. `run` raises UserError if sweeps cannot be read.
    """

    recorded = False

    def run(self, session: Session, record: Record) -> Metrics:
        outputs = Path(session.config["outputs_dir"])
        rows, commands, broken, seen = [], dict[str, str](), list[str](), set[str]()
        for path in sorted(outputs.rglob(SWEEP), key=_order, reverse=True):
            try:
                known = read_json(path) or {}
                if known["key"] in seen:  # another start of the same sweep
                    continue
                seen.add(known["key"])
                where = str(path.parent.relative_to(outputs))
                rows.append({"sweep": where, "name": str(known["name"])} | _state(path.parent, known))
                if rows[-1]["state"] not in ("finished", "running"):
                    commands[where] = str(known["command"])
            except (UserError, KeyError, TypeError, ValueError) as error:
                reason = f"it lacks {error}" if isinstance(error, KeyError) else error
                broken.append(f"{path}: {reason}")
        if rows:
            rows_table(f"sweeps in {outputs}", rows)
        else:
            print(f"there are no sweeps in {outputs}")
        for where, line in commands.items():
            print(f"go on with {where}:\n  {line}")
        if broken:
            raise UserError("could not be read:\n  " + "\n  ".join(broken))
        return {"sweeps": float(len(rows))}


def _order(path: Path) -> tuple[bool, float]:
    """Sort key by which running sweeps come last, and among the others the newest."""
    return _running(path.parent), path.stat().st_mtime


def _running(folder: Path) -> bool:
    try:
        lock = try_lock(folder / LOCK)
    except OSError:  # another user's folder
        return False
    if lock:
        lock.release()
    return lock is None


def _state(folder: Path, known: Mapping[str, Any]) -> dict[str, str]:
    status = str(known["status"])
    state = "running" if _running(folder) else "killed" if status == "RUNNING" else status.lower()
    done, best = _study(known) if known["storage"] else _grid(folder, known)
    return {"state": state, "done": f"{done} of {known['wanted']}", "best": best}


def _grid(folder: Path, known: Mapping[str, Any]) -> tuple[str, str]:
    """Return the number of jobs that finished, and the best of them."""
    found, metric = summary.children(folder), str(listed(known["objective"])[0])
    best = summary.best(found, metric, bool(known["lower"]))
    shown = f"{metric} {summary.mean(best, metric)[0]:.4g}: {best[0].name}" if best else "-"
    return str(sum(bool(child.metrics) for child in found)), shown


def _study(known: Mapping[str, Any]) -> tuple[str, str]:
    """Return the number of trials that ended, and the best of them; "?" if the storage is no file or not there."""
    import optuna

    url, names = str(known["storage"]), listed(known["objective"])
    path = file(url)
    if is_masked(url) or path is None or not path.exists():
        return "?", "? (in the storage of the study)"
    study = optuna.load_study(study_name=str(known["name"]), storage=open_storage(url))
    trials = study.get_trials(deepcopy=False)
    done = sum(trial.state.is_finished() and counts(trial) for trial in trials)
    complete = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        return str(done), "-"
    if len(names) > 1:
        return str(done), f"{len(study.best_trials)} trials on the Pareto front"
    values = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in study.best_params.items())
    return str(done), f"{names[0]} {study.best_value:.4g}: {values} (trial {study.best_trial.number})"

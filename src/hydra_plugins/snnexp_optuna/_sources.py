"""Where a study takes trials over from: another study, in any storage, or the runs of MLflow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.snnexp_optuna._seeds import ERROR
from hydra_plugins.snnexp_optuna._space import Dimension, Space
from hydra_plugins.snnexp_optuna._start import value_of
from hydra_plugins.snnexp_optuna._taken import ABSENT, KEY, Finished, Source, Unfit, finished
from snnexp.build import build
from snnexp.config import RUN, experiment_of, listed, without_hydra
from snnexp.errors import UserError
from snnexp.masking import masked
from snnexp.trial.counted import TAKEN
from snnexp.trial.data import ATTRIBUTE, attribute_of
from snnexp.trial.dominated import EPOCH
from snnexp.trial.storage import SCHEME, exclusive, file, open_storage

FORM = (
    "it must be {study:NAME}, {study:NAME,storage:FILE_OR_URL} or {mlflow:EXPERIMENT_OR_RUN_ID}, each also with "
    "differing:[KEY,...], or a list of these, or null"
)
MEASURED = ("objective", "direction")  # of a study's identity: never allowed to differ


@dataclass(frozen=True)
class Wanted:
    """The study that takes trials over: its name, its identity, its space, and the config of each of its points.

    `elsewhere` are keys that may differ between machines.
    """

    name: str
    identity: Mapping[str, Any]
    space: Space
    config: DictConfig
    loader: ConfigLoader
    fixed: Sequence[str]
    url: str
    elsewhere: Sequence[str]

    def experiment(self, params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the resolved values that determine the result of a trial with these parameters, flattened.

        `changes` are values of further keys, which those that refer to them follow.
        """
        job = self.loader.load_sweep_config(self.config, [*self.fixed, *self.space.overrides(params)])
        for key, value in changes.items():
            OmegaConf.update(job, key, value, merge=False, force_add=True)
        made = without_hydra(job, resolve=True)
        if (weights := made.get("checkpoint")) and not RUN.fullmatch(weights):
            made["checkpoint"] = str(Path(weights).expanduser().absolute())
        return experiment_of(made)

    def refers(self, key: str) -> bool:
        """Return whether the key has the value of another key."""
        node, _, name = key.rpartition(".")
        parent = OmegaConf.select(self.config, node) if node else self.config
        return isinstance(parent, DictConfig) and name in parent and OmegaConf.is_interpolation(parent, name)


def sources(given: Any, wanted: Wanted) -> list[Source]:
    """Return what each entry of `given`, the setting take_over, gives to the study `wanted`.

    Raises UserError for a wrong entry, a source that cannot be read or compared, and one of which nothing fits.
    """
    made = [_source(entry, wanted) for entry in _entries(given)]
    for source in made:
        source.check()
    return made


def _entries(given: Any) -> list[Mapping[str, Any]]:
    entries = [] if given is None else given if isinstance(given, list) else [given]
    for entry in entries:
        keys = set(entry) if isinstance(entry, Mapping) else set()
        texts = all(isinstance(entry[key], str | int) for key in keys - {"differing"})
        lists = not keys or isinstance(entry.get("differing", []), list)
        if keys - {"differing"} not in ({"study"}, {"study", "storage"}, {"mlflow"}) or not texts or not lists:
            raise UserError(f"{KEY}={masked(entry)} is not allowed: {FORM}")
    return entries


def _source(entry: Mapping[str, Any], wanted: Wanted) -> Source:
    differing = [str(key) for key in entry.get("differing", [])]
    if "mlflow" in entry:
        return _from_mlflow(str(entry["mlflow"]), differing, wanted)
    return _from_study(str(entry["study"]), entry.get("storage"), differing, wanted)


def _from_study(name: str, storage: str | None, differing: Sequence[str], wanted: Wanted) -> Source:
    url = wanted.url if storage is None else _url(str(storage))
    source = Source(f"study {name}" + ("" if storage is None else f" in {masked(str(storage))}"))
    if (path := file(url)) and not path.exists():
        raise UserError(f"{KEY}: there is no file {path}")
    opened = open_storage(url, f"{KEY}.storage")
    with exclusive(url):
        names = [summary.study_name for summary in optuna.get_all_study_summaries(opened, include_best_trial=False)]
        if name not in names:
            known = f"it has {', '.join(names)}" if names else "it has none"
            raise UserError(f"{KEY}: there is no study {name} in {masked(url)}: {known}")
        study = optuna.load_study(study_name=name, storage=opened)
        identity, attrs, trials = study.user_attrs.get("identity"), study.user_attrs, study.get_trials(deepcopy=False)
    if identity is None:
        raise UserError(f"{KEY}: study {name} was not made by snnexp, so its trials cannot be compared")
    _comparable(source.name, identity, differing, wanted)
    data = {key: value for key, value in attrs.items() if key.startswith(ATTRIBUTE)}
    for trial in finished(trials):
        source.add(_of_trial(trial, str(attrs["key"]), data), wanted.space)
    return source


def _url(storage: str) -> str:
    """Return the address of a storage that may be given as a file."""
    if "://" in storage or storage.startswith(SCHEME):
        return storage
    path = Path(storage).expanduser().absolute()
    sqlite = path.is_file() and path.open("rb").read(16).startswith(b"SQLite format 3")
    return f"sqlite:///{path}" if sqlite else f"{SCHEME}{path}"


def _comparable(name: str, identity: Mapping[str, Any], differing: Sequence[str], wanted: Wanted) -> None:
    """Raise UserError unless the studies agree in all that is not sampled, but for the keys that may differ."""
    own = {key for d in wanted.space.dimensions for key in d.keys} | {"space", *differing} - set(MEASURED)
    keys = [k for k in sorted({*identity, *wanted.identity}) if k not in own]
    pairs = [(key, identity.get(key), wanted.identity.get(key)) for key in keys]
    if unequal := [pair for pair in pairs if pair[1] != pair[2]]:
        raise UserError(f"{KEY}: the trials of {name} cannot be compared with those of this study: {_told(unequal)}")


def _told(unequal: Sequence[tuple[str, Any, Any]]) -> str:
    """Name the keys that differ and, unless they are what is measured, the setting that lets them differ."""
    text = "; ".join(f"{key} is {masked(then)} there and {masked(now)} here" for key, then, now in unequal)
    keys = [key for key, _, _ in unequal]
    if set(keys) & set(MEASURED):
        return text
    return f"{text}. If that does not matter, add differing:[{','.join(keys)}]"


def _of_trial(trial: optuna.trial.FrozenTrial, study: str, data: Mapping[str, Any]) -> Finished:
    known = {name.split(" (")[0]: value for name, value in trial.params.items()}
    attrs = trial.user_attrs
    kept = {name: value for name, value in attrs.items() if name == ERROR or name.startswith(EPOCH)}
    return Finished(
        name=f"trial {trial.number}",
        key=attrs.get(TAKEN, {}).get("key") or f"{study} {trial.number}",
        values=trial.values,
        value=lambda d: known.get(d.name.split(" (")[0], ABSENT),
        names=list(known),
        data=data,
        attributes=kept,
        epochs=trial.intermediate_values,
    )


def _from_mlflow(name: str, differing: Sequence[str], wanted: Wanted) -> Source:
    from snnexp.recorded import RUN_ID, of_run  # late: mlflow
    from snnexp.report.results import at_best_epoch
    from snnexp.tracking import Store

    if wanted.identity.get("seeds"):
        raise UserError(f"{KEY}={{mlflow:{name}}} is not allowed with hydra.sweeper.seeds: a run has one seed")
    store = Store(build("tracking", without_hydra(wanted.config, resolve=True)), KEY)
    parent = store.run(found[1]) if (found := RUN_ID.fullmatch(name)) else None
    if parent is None and name not in store.experiments:
        known = ", ".join(store.experiments)
        raise UserError(f"{KEY}: {name} is neither an experiment nor a run in {store.place}: it has {known}")
    runs = store.runs([parent.experiment if parent else name])
    source = Source(f"MLflow run {name}" if parent else f"MLflow experiment {name}")
    for run in runs:
        elsewhere = parent is not None and run.parent != parent.run_id
        if elsewhere or run.tags.get("task") in ("sweep", "trial") or run.tags.get("study") == wanted.name:
            continue
        try:
            if run.status != "finished":
                raise Unfit(f"its status is {run.status}")
            metrics, objective = at_best_epoch(run, store), listed(wanted.identity["objective"])
            if absent := [metric for metric in objective if metric not in metrics]:
                raise Unfit(f"it has no {absent[0]}")
            record = of_run(store, run, KEY)
        except UserError as error:
            source.leave_out(f"run {run.run_id}", Unfit(str(error)))
        except Unfit as error:
            source.leave_out(f"run {run.run_id}", error)
        else:
            values = [metrics[metric] for metric in objective]
            source.add(_of_run(run.run_id, record, values, differing, wanted), wanted.space)
    return source


def _of_run(run_id: str, record: Any, values: Sequence[float], differing: Sequence[str], wanted: Wanted) -> Finished:
    choices = record.origin.get("choices", {})

    def value(d: Dimension) -> Any:
        parts = [choices[key] if key in choices else _at(record.config, key) for key in d.keys]
        if ABSENT in parts:
            return ABSENT
        found = value_of(d, parts)
        return ", ".join(map(str, parts)) if found is None else found

    data = record.origin.get("data")
    return Finished(
        name=f"run {run_id}",
        key=run_id,
        values=values,
        value=value,
        check=_checking(record.config, differing, wanted),
        data={attribute_of(record.config): data} if data else {},
    )


def _checking(
    config: Mapping[str, Any], differing: Sequence[str], wanted: Wanted
) -> Callable[[Mapping[str, Any]], None]:
    def check(params: Mapping[str, Any]) -> None:
        changes = {key: _at(config, key) for key in differing if _at(config, key) is not ABSENT}
        then, now = experiment_of(masked(config)), experiment_of(masked(wanted.experiment(params, changes)))
        keys = [key for key in sorted({*then, *now} - {*wanted.elsewhere, *differing}) if then.get(key) != now.get(key)]
        keys = [key for key in keys if not wanted.refers(key)] or keys
        if keys:
            raise Unfit(_told([(key, then.get(key), now.get(key)) for key in keys]))

    return check


def _at(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key with dots; ABSENT if there is none."""
    return reduce(
        lambda node, part: node.get(part, ABSENT) if isinstance(node, Mapping) else ABSENT, key.split("."), config
    )

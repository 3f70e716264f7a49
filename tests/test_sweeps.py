"""Sweeps as the user starts them: a parabola instead of a training where what is learned does not matter."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from itertools import combinations, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest

import sweep_app
from conftest import ROOT, SMALL, Done
from forked import Forked
from hydra_plugins.snnexp_optuna import _report  # after conftest, in which Hydra finds its plugins
from waiting import until

INTERVAL = "x=interval(0,4)"
GRID = "hydra.sweeper.sampler={_target_:optuna.samplers.GridSampler,seed:0}"
TINY = (*SMALL, "trainer.epochs=1", "model.hidden=8", "timesteps=2")


def begin(folder: Path, *arguments: str, figures: bool = False) -> Forked:
    """Start the sweep; without the figures of its report, which take a second."""
    (folder / "outputs").mkdir(exist_ok=True)
    main = sweep_app.main if figures else without_figures
    return Forked(main, "sweep_app", "-m", f"outputs_dir='{folder / 'outputs'}'", *arguments, folder=folder)


def without_figures() -> None:
    _report._figures = lambda study, names, folder: None
    sweep_app.main()


def app(folder: Path, *arguments: str, check: bool = True, figures: bool = False) -> Done:
    child = begin(folder, *arguments, figures=figures)
    out, err = child.communicate()
    assert child.returncode == 0 or not check, err
    return Done(child.wait(), out, err, folder / "outputs")


def study(folder: Path, url: str | None = None) -> optuna.Study:
    url = url or f"sqlite:///{folder / 'outputs' / 'optuna.db'}"
    storage = optuna.storages.get_storage(url)
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage)


def calls(folder: Path) -> list[str]:
    file = folder / "outputs" / "calls.txt"
    return file.read_text().splitlines() if file.exists() else []


def until_called(folder: Path, times: int = 1) -> None:
    until(lambda: len(calls(folder)) >= times, f"{times} calls", progress=lambda: calls(folder))


def states(trials: list[optuna.trial.FrozenTrial]) -> Counter[str]:
    return Counter(trial.state.name for trial in trials)


@pytest.fixture(scope="module")
def study_of_14(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The folder of a finished study with the default sampler, and what it printed."""
    folder = tmp_path_factory.mktemp("study")
    arguments = (INTERVAL, "kind=plain,other", "hydra.sweeper.n_trials=14", "seed=3", "epochs=2")
    return folder, app(folder, *arguments, figures=True)


def test_the_suggestions_are_those_of_optuna_itself(study_of_14: tuple[Path, Done]) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 4)
        trial.suggest_categorical("kind", ["plain", "other"])
        return -((x - 2) ** 2)

    alone = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=3))
    alone.optimize(objective, n_trials=14)
    ours = study(study_of_14[0])
    assert [t.params for t in ours.trials] == [t.params for t in alone.trials]
    assert [t.value for t in ours.trials] == [t.value for t in alone.trials]
    assert ours.best_value == alone.best_value


def test_what_a_study_leaves(study_of_14: tuple[Path, Done]) -> None:
    at, done = study_of_14
    (folder,) = (at / "outputs" / "multirun").iterdir()
    known = json.loads((folder / "study.json").read_text())
    assert [t["state"] for t in known["trials"]] == ["COMPLETE"] * 14
    assert len((folder / "trials.csv").read_text().splitlines()) == 15
    figures = {p.stem for p in (folder / "figures").iterdir()}
    assert {"history", "slice", "parallel_coordinates", "intermediate_values"} <= figures
    best = study(at).best_trial
    assert f"x: {best.params['x']!r}" in (folder / "experiment" / "best.yaml").read_text()
    assert f"best: trial {best.number}" in done.out


def test_a_finished_study_runs_nothing_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    for n in (3, 3, 5):
        app(tmp_path, INTERVAL, f"hydra.sweeper.n_trials={n}", "seed=1")
        trials = study(tmp_path).trials
        assert [t.number for t in trials] == list(range(n))
        assert len(calls(tmp_path)) == n
    assert len({t.params["x"] for t in trials}) == 5, "a resumed sampler does not begin again with the same points"


def test_pruned_trials_are_pruned_and_keep_what_they_reported(tmp_path: Path) -> None:
    pruner = "hydra.sweeper.pruner={_target_:optuna.pruners.ThresholdPruner,lower:0}"
    app(tmp_path, "x=choice(2,9)", "epochs=3", pruner, "hydra.sweeper.n_trials=2", GRID)
    by_x = {t.params["x"]: t for t in study(tmp_path).trials}
    assert (by_x[2].state.name, by_x[9].state.name) == ("COMPLETE", "PRUNED")
    assert by_x[2].intermediate_values == {1: 0.0, 2: 1.0, 3: 2.0}
    assert by_x[9].intermediate_values == {1: -49.0}


def test_jobs_that_die_fail_their_own_trials_and_are_retried(tmp_path: Path) -> None:
    done = app(
        tmp_path,
        "kind=choice(exit,kill,plain)",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.retries=1",
        "hydra.sweeper.parallel=2",
        GRID,
    )
    launches = re.findall(r"launching (\d+) jobs", done.out)
    assert launches == ["0", *"11111"], "joblib's executor is made before two threads ask for it at once"
    trials = study(tmp_path).trials
    assert states(trials) == {"COMPLETE": 1, "FAIL": 4}
    for kind, reason in {"exit": "exit status 3", "kill": "SIGKILL"}.items():
        dead = [t for t in trials if t.params["kind"] == kind]
        assert states(dead) == {"FAIL": 2}
        assert all(reason in t.user_attrs["outcome"]["reason"] for t in dead)
        assert dead[1].user_attrs["retry_of"] == dead[0].number


def test_a_retry_can_succeed(tmp_path: Path) -> None:
    app(tmp_path, INTERVAL, "kind=kill_once", "hydra.sweeper.n_trials=2")
    trials = study(tmp_path).trials
    assert [t.state.name for t in trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials[1].params == trials[0].params


def test_a_grid_sampler_goes_on_where_it_was_and_stops_when_it_has_seen_all(tmp_path: Path) -> None:
    grid = ("x=choice(1,2,3,4)", "hydra.sweeper.sampler={_target_:optuna.samplers.GridSampler,seed:1}")
    for n, called in ((2, 2), (9, 4), (9, 4)):
        app(tmp_path, *grid, f"hydra.sweeper.n_trials={n}")
        assert len(calls(tmp_path)) == called
    assert sorted(line.split()[0] for line in calls(tmp_path)) == ["1", "2", "3", "4"]


def test_points_that_always_fail_do_not_end_a_sweep(tmp_path: Path) -> None:
    app(
        tmp_path,
        "kind=choice(raise,plain)",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.retries=6",
        GRID,
        "hydra.sweeper.max_failures=2",
    )
    assert states(study(tmp_path).trials) == {"FAIL": 7, "COMPLETE": 1}


def test_an_interrupted_sweep_does_not_wait_for_its_jobs(tmp_path: Path) -> None:
    parent = begin(tmp_path, INTERVAL, "hold=1", "hydra.sweeper.n_trials=2", "hydra.sweeper.parallel=2")
    until_called(tmp_path)
    parent.send_signal(signal.SIGINT)  # to the parent alone, whose jobs do not end
    assert parent.wait() == 130


def test_conditions_follow_what_they_depend_on(tmp_path: Path) -> None:
    space = '{text:{y:{1:"choice(u,v)"}},y:{kind:{other:"choice(1,2)"}},kind:"choice(plain,other)"}'
    app(
        tmp_path,
        f"++hydra.sweeper.space={space}",
        "hydra.sweeper.n_trials=12",
        "hydra.sweeper.sampler={_target_:optuna.samplers.RandomSampler,seed:0}",
        figures=True,
    )
    found = [trial.params for trial in study(tmp_path).trials]
    kinds = {(params["kind"], params.get("y (kind=other)"), "text (y=1)" in params) for params in found}
    assert kinds == {("plain", None, False), ("other", 1, True), ("other", 2, False)}


def test_a_sweep_whose_trials_all_fail_gives_up(tmp_path: Path) -> None:
    few = ("hydra.sweeper.n_trials=20", "hydra.sweeper.max_failures=3", "hydra.sweeper.retries=0")
    done = app(tmp_path, INTERVAL, "kind=raise", *few, check=False, figures=True)
    assert done.code == 1
    assert "gave up after 3 failed trials" in done.err
    assert states(study(tmp_path).trials)["FAIL"] == 3


@pytest.mark.parametrize(("parallel", "same_folder"), [(1, False), (1, True), (2, False)])
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path, parallel: int, same_folder: bool) -> None:
    arguments = [INTERVAL, "hold=3", "hydra.sweeper.n_trials=6", f"hydra.sweeper.parallel={parallel}"]
    arguments += [f"hydra.sweep.dir='{tmp_path / 'mine'}'"] if same_folder else []
    process = begin(tmp_path, *arguments)
    until_called(tmp_path, times=3)  # the third does not end before the kill
    process.kill()
    assert process.returncode == -signal.SIGKILL
    before = study(tmp_path).trials
    (tmp_path / "outputs" / "go").touch()
    app(tmp_path, *arguments)
    after = study(tmp_path).trials
    assert states(after)["COMPLETE"] == 6
    assert not states(after)["RUNNING"]
    done = [t for t in before if t.state.name == "COMPLETE"]
    assert [after[t.number].value for t in done] == [t.value for t in done], "finished trials are kept"
    lost = [t for t in after if t.state.name == "FAIL"]
    assert {t.number for t in lost} == {t.user_attrs["retry_of"] for t in after if "retry_of" in t.user_attrs}
    values = [t.params["x"] for t in after if "retry_of" not in t.user_attrs]
    assert len(values) == len(set(values)), "the sampler does not repeat itself"


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_parents_share_a_study(tmp_path: Path, kind: str) -> None:
    url = f"sqlite:///{tmp_path}/shared.db" if kind == "sqlite" else f"journal:{tmp_path}/shared.log"
    arguments = (INTERVAL, "hydra.sweeper.n_trials=12", f"hydra.sweeper.storage={url}", "meet=3")
    parents = [begin(tmp_path, *arguments) for _ in range(3)]
    for parent in parents:
        _, err = parent.communicate()
        assert parent.returncode == 0, err
        assert "locked" not in err
    storage: Any = url
    if kind == "journal":
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(f"{tmp_path}/shared.log"))
    trials = study(tmp_path, storage).trials
    assert states(trials) == {"COMPLETE": 12}
    assert len({t.params["x"] for t in trials}) == 12
    assert len({t.user_attrs["job"]["owner"] for t in trials}) == 3, "each parent has had a trial"


def test_a_timeout_ends_a_sweep_well(tmp_path: Path) -> None:
    app(tmp_path, INTERVAL, "hydra.sweeper.n_trials=1000", "hydra.sweeper.timeout=0.5")
    found = states(study(tmp_path).trials)
    assert 1 <= found["COMPLETE"] < 1000
    assert set(found) == {"COMPLETE"}


def test_several_objectives_have_a_pareto_front(tmp_path: Path) -> None:
    done = app(
        tmp_path,
        INTERVAL,
        "objective=[val/value,val/other]",
        "hydra.sweeper.direction=[maximize,minimize]",
        "hydra.sweeper.n_trials=8",
        figures=True,
    )
    (folder,) = (tmp_path / "outputs" / "multirun").iterdir()
    front = study(tmp_path).best_trials
    assert "Pareto front" in done.out
    assert (folder / "figures" / "pareto.png").exists()
    assert {p.stem for p in (folder / "experiment").iterdir()} == {f"best_{t.number}" for t in front}


REFUSED = [
    (["+nonsense.q=1", "nonsense.q=interval(0,1)", "nosuch=interval(0,1)"], ["nosuch"]),
    (["x=interval(2,2)"], ["x=interval(2,2)", "empty"]),
    (["x=tag(log,interval(0,1))"], ["logarithm of 0"]),
    (["kind=choice(a,a)"], ["a is there twice"]),
    ([INTERVAL, "hydra.sweeper.storage=postgresql://nobody@127.0.0.1:1/none"], ["hydra.sweeper.storage", "cannot"]),
    ([INTERVAL, "hydra.sweeper.storage=ftp://x"], ["hydra.sweeper.storage=ftp://x"]),
    ([INTERVAL, "hydra.sweeper.direction=up"], ["direction=up", "maximize"]),
    ([INTERVAL, "hydra.sweeper.direction=[maximize,minimize]"], ["direction", "2"]),
    ([INTERVAL, "hydra.sweeper.sampler={_target_:optuna.samplers.Nope}"], ["sampler", "Nope"]),
    ([INTERVAL, "hydra.sweeper.pruner={_target_:optuna.samplers.RandomSampler}"], ["pruner", "RandomSampler"]),
    ([INTERVAL, "hydra.sweeper.retries=-1"], ["retries=-1"]),
    ([INTERVAL, "objective=test/accuracy"], ["objective=test/accuracy"]),
    (["x=1"], ["no search space"]),
    ([INTERVAL, "objective=null"], ["objective=None", "validation metric"]),
    ([INTERVAL, "hydra.sweeper.sampler=foo"], ["hydra.sweeper.sampler=foo", "_target_"]),
    ([INTERVAL, "hydra.sweeper.pruner={a:1}"], ["hydra.sweeper.pruner=", "_target_"]),
    ([INTERVAL, "hydra.sweeper.storage='sqlite://'"], ["hydra.sweeper.storage=sqlite://"]),
    (['++hydra.sweeper.space={kind:"choice(plain,a)",y:{kind:{b:"interval(0,1)"}}}'], ["kind is never b"]),
]


@pytest.mark.parametrize(("arguments", "named"), REFUSED, ids=lambda a: a[-1] if isinstance(a, list) else "")
def test_bad_input_is_refused_at_the_start(tmp_path: Path, arguments: list[str], named: list[str]) -> None:
    done = app(tmp_path, *arguments, "hydra.sweeper.n_trials=2", check=False)
    assert done.code == 1
    for word in named:
        assert word in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "outputs" / "calls.txt").exists()


def test_another_space_under_the_same_name_is_refused(tmp_path: Path) -> None:
    app(tmp_path, INTERVAL, "hydra.sweeper.n_trials=1", "hydra.sweeper.study=mine")
    for other in (["x=interval(0,5)"], [INTERVAL, "epochs=1"]):
        done = app(tmp_path, *other, "hydra.sweeper.n_trials=2", "hydra.sweeper.study=mine", check=False)
        assert done.code == 1
        assert "hydra.sweeper.study=mine exists already" in done.err
    assert len(study(tmp_path).trials) == 1


# the real program


def runs(done: Done) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{done.outputs / 'mlflow.db'}")
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)


@pytest.mark.usefixtures("store")
def test_a_grid_has_a_run_per_job_and_a_parent_with_a_summary(snnexp: Callable[..., Done]) -> None:
    done = snnexp("-m", *TINY, "surrogate=atan,sine", "seed=0,1")
    assert done.code == 0, done.err
    (parent,) = [run for run in runs(done) if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs(done) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.run_name == "surrogate x seed"
    assert sorted(run.info.run_name for run in children) == [f"{s} seed={n}" for s in ("atan", "sine") for n in (0, 1)]
    assert {run.info.status for run in runs(done)} == {"FINISHED"}
    settings = [[run for run in children if s in run.info.run_name] for s in ("atan", "sine")]
    means = [fmean(run.data.metrics["val/accuracy"] for run in setting) for setting in settings]
    best = max(settings[means.index(max(means))], key=lambda run: run.data.metrics["val/accuracy"])
    assert parent.data.metrics["best/val/accuracy"] == pytest.approx(max(means))
    assert parent.data.tags["best.run_id"] == best.info.run_id
    (folder,) = done.outputs.glob("multirun/*/*")
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]
    assert len(results) == 4
    assert all(one != other for one, other in combinations(results, 2))
    rows = (folder / "summary.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "val/accuracy std" in rows[0]
    again = snnexp("--config-dir", str(folder), "experiment=best", "tracking=none")
    assert again.code == 0, again.err
    assert again.result()["val/accuracy"] == best.data.metrics["val/accuracy"]


@pytest.mark.usefixtures("store")
def test_a_grid_that_fails_keeps_what_it_found(snnexp: Callable[..., Done]) -> None:
    done = snnexp("-m", *TINY, "seed=0,-1")
    assert done.code == 1
    assert "seed=-1 is not allowed" in done.err
    (parent,) = [run for run in runs(done) if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.status, parent.data.tags["best"]) == ("FAILED", "seed=0")
    assert next(done.outputs.glob("multirun/*/*/summary.csv")).read_text().splitlines()[1].startswith("1,")


@pytest.mark.usefixtures("store")
def test_a_grid_that_is_resumed_counts_what_was_there(snnexp: Callable[..., Done]) -> None:
    small = (*TINY, "resume=true")
    assert snnexp("-m", *small, "seed=0,1").code == 0
    done = snnexp("-m", *small, "seed=0,1,2")
    assert done.code == 0, done.err
    last = max(done.outputs.glob("multirun/*/*/summary.csv"), key=lambda path: path.stat().st_mtime)
    assert last.read_text().splitlines()[1].startswith("3,")


def test_a_study_wants_a_multirun_and_a_range_a_study(snnexp: Callable[..., Done]) -> None:
    single = snnexp(*SMALL, "+sweep=surrogate_alpha")
    assert (single.code, "snnexp -m" in single.err) == (1, True)
    grid = snnexp("-m", *SMALL, "optimizer.lr=tag(log,interval(1e-4,1e-1))")
    assert (grid.code, "hydra.sweeper.n_trials=N" in grid.err) == (1, True)


@pytest.mark.usefixtures("store", "no_figures")
def test_a_study_of_trainings_prunes_and_nests_its_trials(snnexp: Callable[..., Done]) -> None:
    # the lowest percentile: whatever is not the best so far is pruned
    pruner = (
        "++hydra.sweeper.pruner={_target_:optuna.pruners.PercentilePruner,percentile:1.0,n_startup_trials:1,"
        "n_warmup_steps:0}"
    )
    done = snnexp(
        "-m",
        *TINY,
        "+sweep=surrogate_alpha",
        "trainer.epochs=2",
        "hydra.sweeper.n_trials=4",
        pruner,
        "hydra.sweeper.sampler.n_startup_trials=3",
    )
    assert done.code == 0, done.err
    ours = optuna.load_study(study_name=None, storage=f"sqlite:///{done.outputs / 'optuna.db'}")
    (parent,) = [run for run in runs(done) if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.tags["trial"]: run for run in runs(done) if "trial" in run.data.tags}
    assert parent.data.tags["study"] == ours.study_name
    for trial in ours.trials:
        run = children.pop(str(trial.number))
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["status"] == {"COMPLETE": "finished", "PRUNED": "pruned"}[trial.state.name]
        assert run.data.metrics["val/accuracy"] in trial.intermediate_values.values()
    assert not children
    assert "PRUNED" in states(ours.trials)


def test_accuracy_against_spikes_and_against_time(snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    drawings = _report._drawings
    first = lambda study, names: islice(drawings(study, names), 1)  # noqa: E731  # the Pareto front
    monkeypatch.setattr(_report, "_drawings", first)
    names = ["val/accuracy", "val/spikes_per_sample", "val/accuracy_T1"]
    done = snnexp(
        "-m",
        *TINY,
        "tracking=none",
        f"objective=[{','.join(names)}]",
        "neuron.threshold=range(1,4)",
        "hydra.sweeper.direction=[maximize,minimize,maximize]",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.sampler={_target_:optuna.samplers.GridSampler,seed:0}",
    )
    assert done.code == 0, done.err
    (trials, folder) = study(done.outputs.parent).trials, next(done.outputs.glob("multirun/*/*"))
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")}
    assert {str(t.number): t.values for t in trials} == {n: [r[name] for name in names] for n, r in results.items()}
    assert all(0 <= value <= 1 < t.values[1] for t in trials for value in (t.values[0], t.values[2]))
    assert (folder / "figures" / "pareto.png").exists()


def test_an_objective_that_the_task_does_not_give_is_refused(snnexp: Callable[..., Done]) -> None:
    done = snnexp(*SMALL, "timesteps=4", "objective=val/accuracy_T5")
    assert (done.code, "objective=val/accuracy_T5 is not allowed" in done.err) == (1, True)


SWEEPS = sorted(p.stem for p in (ROOT / "sweeps").glob("*.yaml"))


def test_these_sweeps_are_shipped() -> None:
    assert SWEEPS == [
        "conversion_threshold",
        "learning_rate",
        "neuron_threshold",
        "surrogate_alpha",
        "surrogate_choice",
        "surrogate_lab",
        "surrogate_values",
        "surrogate_values_all",
        "surrogate_width",
    ]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("name", [name for name in SWEEPS if name != "conversion_threshold"])
def test_every_shipped_sweep_begins(snnexp: Callable[..., Done], name: str) -> None:
    done = snnexp("-m", *TINY, f"+sweep={name}", "hydra.sweeper.n_trials=1", "tracking=none")
    assert done.code == 0, done.err
    assert "best: trial 0" in done.out


@pytest.mark.usefixtures("no_figures")
def test_a_sweep_over_conversions_trains_its_network_once(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = snnexp(
        "-m",
        "+sweep=conversion_threshold",
        "timesteps=[2,4]",
        "trainer.epochs=1",
        "trainer.threads=1",
        "model.width=4",
        "objective=[val/snn_accuracy_T2,val/snn_accuracy_T4]",
        "tracking=none",
        "hydra.sweeper.direction=[maximize,maximize]",
        "hydra.sweeper.n_trials=3",
        f"cache_dir={cache}",
    )
    assert done.code == 0, done.err
    trials = study(done.outputs.parent).trials
    assert [len(t.values) for t in trials] == [2, 2, 2]
    assert len({t.params["conversion.scale"] for t in trials}) == 3
    assert len(set(cache.glob("ann/*"))) == 1
    assert done.out.count("epoch   1/1") + done.err.count("epoch   1/1") == 1


def test_an_unknown_sweep_is_an_error(snnexp: Callable[..., Done]) -> None:
    done = snnexp("-m", "+sweep=nope")
    assert done.code == 1
    assert "+sweep=nope is not allowed" in done.err


@pytest.mark.slow
def test_eight_processes_write_one_store_and_one_study(forked: Callable[..., Forked], tmp_path: Path) -> None:
    """Nothing lost, nothing twice, no locked database. SNNEXP_TEST_RUNS=200 makes it long."""
    n = int(os.environ.get("SNNEXP_TEST_RUNS", "48"))
    arguments = (
        "-m",
        *TINY,
        "dataset.validation=0.1",
        "neuron.threshold=interval(0.5,2)",
        f"hydra.sweeper.n_trials={n}",
    )
    parents = [forked(*arguments) for _ in range(8)]
    for parent in parents:
        _, err = parent.communicate(timeout=3600)
        assert parent.returncode == 0, err
        assert "locked" not in err
    done = Done(0, "", "", tmp_path / "outputs")
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{done.outputs / 'optuna.db'}").trials
    assert states(trials) == {"COMPLETE": n}
    numbers = Counter(run.data.tags["trial"] for run in runs(done) if "mlflow.parentRunId" in run.data.tags)
    assert numbers == Counter(str(number) for number in range(n))

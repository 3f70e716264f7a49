"""Sweeps on SLURM, with the study and MLflow on PostgreSQL: whatever dies, every trial is accounted for in both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from cluster.engines import Cluster, kill_tree, query
from waiting import until

pytestmark = pytest.mark.cluster

SMALL = ("model.hidden=16", "timesteps=2", "trainer.threads=1")
SLURM = (
    "hydra/launcher=submitit_slurm",
    "hydra.launcher.timeout_min=10",
    "hydra.launcher.signal_delay_s=30",
    "hydra.sweeper.parallel=2",
)
SHORT, LONG = "trainer.epochs=2", "trainer.epochs=100"  # LONG leaves time to kill something that runs
ENDED = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}


@dataclass
class Sweep:
    """One sweep's databases and parents."""

    cluster: Cluster
    folder: Path
    cache: Path
    study_at: str
    runs_at: str
    arguments: tuple[str, ...] = ()
    parents: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A parent; the same command again with the `arguments` of the first."""
        self.arguments = arguments or self.arguments
        folders = {"SNNEXP_OUTPUTS": f"{self.folder}/outputs", "SNNEXP_CACHE": str(self.cache), "COLUMNS": "200"}
        command = [
            sys.executable,
            "-m",
            "snnexp.run",
            "-m",
            *SMALL,
            *SLURM,
            f"tracking.uri={self.runs_at}",
            f"hydra.sweeper.storage={self.study_at}",
            *self.arguments,
        ]
        with self.log(len(self.parents)).open("wb") as log:
            self.parents.append(
                subprocess.Popen(
                    command,
                    env=self.cluster.environment | folders,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        return self.parents[-1]

    def log(self, number: int) -> Path:
        return self.folder / f"parent{number}.log"

    def finish(self) -> None:
        """Wait for all parents that live; each must succeed."""
        for number, parent in enumerate(self.parents):
            if parent.returncode is None:
                until(lambda p=parent: p.poll() is not None, "a parent", patience=600, progress=self.told, poll=0.3)  # type: ignore[misc]
                assert parent.returncode == 0, self.log(number).read_text()

    def told(self) -> int:
        """How much all parents have written: a line for each trial that ends."""
        return sum(log.stat().st_size for log in self.folder.glob("parent*.log"))

    def wait_for(self, what: str, there: Callable[[], object], timeout: float = 240) -> None:
        def reached() -> bool:
            if there():
                return True
            assert any(parent.poll() is None for parent in self.parents), f"no parent lives:\n{self.story()}"
            return False

        try:
            until(reached, what, patience=timeout, progress=self.told, poll=0.3)
        except TimeoutError as late:
            raise TimeoutError(f"{late}\n{self.story()}") from late

    def story(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in sorted(self.folder.glob("parent*.log")))

    def trials(self) -> list[FrozenTrial]:
        storage = optuna.storages.RDBStorage(self.study_at)
        try:
            names = optuna.get_all_study_names(storage)
            return optuna.load_study(study_name=names[0], storage=storage).trials if names else []
        finally:
            storage.engine.dispose()

    def state(self, state: TrialState) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state == state]

    def training(self) -> int:
        """How many jobs have got as far as MLflow, and not to their end."""
        there = query(self.runs_at, "SELECT 1 FROM information_schema.tables WHERE table_name = 'latest_metrics'")
        sql = """SELECT count(DISTINCT r.run_uuid) FROM runs r JOIN latest_metrics m ON m.run_uuid = r.run_uuid
                 WHERE r.status = 'RUNNING' AND m.key = 'val/accuracy'"""
        return int(query(self.runs_at, sql)[0][0]) if there else 0

    def runs(self) -> list[Run]:
        client = MlflowClient(self.runs_at)
        return list(client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000))

    def accounted(self, n_trials: int) -> list[FrozenTrial]:
        """Assert that both databases tell the same, complete story; returns the trials."""
        trials, runs = self.trials(), self.runs()
        assert Counter(t.state.is_finished() for t in trials) == {True: len(trials)}, self.story()
        ended = [t for t in trials if t.state in ENDED]
        assert len(ended) == n_trials, self.story()
        assert [t.number for t in trials] == list(range(len(trials)))

        assert {r.info.status for r in runs} <= {"FINISHED", "FAILED", "KILLED"}, self.story()
        parents = {r.info.run_id for r in runs if "mlflow.parentRunId" not in r.data.tags}
        children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
        assert {r.data.tags["mlflow.parentRunId"] for r in children} <= parents
        of = {number: [r for r in children if r.data.tags["trial"] == str(number)] for number in range(len(trials))}
        assert sum(map(len, of.values())) == len(children), "a run of no trial"
        for trial in ended:
            (run,) = of[trial.number]
            assert run.data.tags["status"] == ENDED[trial.state]
            told = sorted(
                (m.step, m.value)
                for m in MlflowClient(self.runs_at).get_metric_history(run.info.run_id, "val/accuracy")
            )
            assert told, "no metrics kept"
            reported = trial.intermediate_values
            assert sorted({value for _, value in told}) == sorted(set(reported.values()))
            if trial.state == TrialState.COMPLETE:
                assert trial.value in dict.fromkeys(reported.values())
        for trial in trials:
            if trial.state == TrialState.FAIL:
                assert all(r.info.status in ("FAILED", "KILLED") for r in of[trial.number])
        # a job's answer is there before SLURM has cleared it away
        until(lambda: not self.cluster.jobs(states="R,PD"), "SLURM to clear away the jobs", poll=0.5)
        return trials


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has the data already, as on a cluster in use."""
    folder = tmp_path_factory.mktemp("prepared")
    environment = os.environ | {"SNNEXP_OUTPUTS": f"{folder}/outputs", "SNNEXP_CACHE": f"{folder}/cache"}
    subprocess.run(
        [sys.executable, "-m", "snnexp.run", *SMALL, SHORT, "tracking=none"],
        env=environment,
        check=True,
        capture_output=True,
    )
    return folder / "cache"


@pytest.fixture
def sweep(cluster: Cluster, tmp_path: Path, prepared: Path) -> Iterator[Sweep]:
    made = Sweep(cluster, tmp_path, prepared, cluster.database("study"), cluster.database("mlflow"))
    yield made
    for parent in made.parents:
        kill_tree(parent)


def test_prunes(sweep: Sweep) -> None:
    """A learning rate of next to nothing stays at chance, and goes after its first epoch."""
    sweep.start(
        SHORT,
        "model.hidden=64",
        "hydra.sweeper.n_trials=5",
        "optimizer.lr=choice(1e-9,0.001)",
        "seed=choice(0,1,2)",
        "hydra.sweeper.sampler={_target_:optuna.samplers.GridSampler}",  # no point twice, also when asked together
        "hydra.sweeper.pruner={_target_:optuna.pruners.ThresholdPruner,lower:0.2}",
    )
    sweep.finish()
    for trial in sweep.accounted(n_trials=5):  # of 2 x 3: at least two of each rate
        hopeless = trial.params["optimizer.lr"] in (1e-9, "1e-9")
        assert trial.state == (TrialState.PRUNED if hopeless else TrialState.COMPLETE)
        assert len(trial.intermediate_values) == (1 if hopeless else 2)
    assert len(sweep.state(TrialState.PRUNED)) >= 2


@pytest.mark.parametrize("requeue", [False, True], ids=["job-lost", "job-requeued"])
def test_node_killed(sweep: Sweep, requeue: bool) -> None:
    """Its trial fails and is run anew, or SLURM runs its job again; the other node's trials know nothing of it."""
    more = () if requeue else ("+hydra.launcher.additional_parameters.no-requeue=true",)
    sweep.start("+sweep=surrogate_alpha", LONG, "hydra.sweeper.pruner=null", "hydra.sweeper.n_trials=4", *more)
    sweep.wait_for("both nodes to train", lambda: sweep.training() == 2)
    sweep.cluster.node_down("n1")
    sweep.finish()
    trials = sweep.accounted(n_trials=4)
    assert len([t for t in trials if t.state == TrialState.FAIL]) <= 1
    if not requeue:
        assert len(trials) == 5


def test_parent_killed_and_resumed(sweep: Sweep) -> None:
    """Its jobs go on without it, one of which still waits for a node; the same command takes up what they found, and
    does only what is left.
    """
    parent = sweep.start(
        "+sweep=surrogate_alpha",
        LONG,
        "hydra.sweeper.pruner=null",
        "hydra.sweeper.n_trials=5",
        "hydra.sweeper.parallel=3",
    )
    sweep.wait_for(
        "a finished trial, one that trains, and a job that waits for a node",
        lambda: sweep.state(TrialState.COMPLETE) and sweep.training() and sweep.cluster.jobs(states="PD"),
    )
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    before = {t.number: (t.params, t.value) for t in sweep.state(TrialState.COMPLETE)}
    sweep.start()
    sweep.finish()
    trials = sweep.accounted(n_trials=5)
    assert before.items() <= {t.number: (t.params, t.value) for t in trials}.items()
    values = [tuple(sorted(t.params.items())) for t in trials if t.state == TrialState.COMPLETE]
    assert len(set(values)) == len(values), "the sampler repeated itself"

    count = len(trials)
    sweep.start()  # all is done: nothing more runs
    sweep.finish()
    assert len(sweep.accounted(n_trials=5)) == count


def test_two_parents(sweep: Sweep) -> None:
    """Started at once on empty databases, they share the trials out, whichever of them makes the tables."""
    sweep.start("+sweep=surrogate_alpha", SHORT, "hydra.sweeper.n_trials=6")
    sweep.start()
    sweep.finish()
    trials = sweep.accounted(n_trials=6)
    assert len(trials) == 6

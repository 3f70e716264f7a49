"""The cluster itself: if one of these fails, the tests of sweeps on it say nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.engines import Cluster, connected, descendants, query
from waiting import until

pytestmark = pytest.mark.cluster

SUBMIT = """\
import os, sys, time, submitit
executor = submitit.AutoExecutor(cluster="slurm", folder=sys.argv[1])
executor.update_parameters(timeout_min=5, slurm_signal_delay_s=30)
"""


def submit(cluster: Cluster, folder: Path, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SUBMIT + code, str(folder)],
        env=cluster.environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_srun_reaches_both_nodes(cluster: Cluster) -> None:
    out = cluster.slurm("srun", "-N2", "bash", "-c", "hostname; echo $SLURMD_NODENAME")
    assert {"n1", "n2"} <= set(out.split())


def test_submitit_returns_values_of_an_array(cluster: Cluster, tmp_path: Path) -> None:
    code = "print(sorted(job.result() for job in executor.map_array(abs, [-1, -2, -3])))"
    out, err = submit(cluster, tmp_path, code).communicate(timeout=90)
    assert out.strip() == "[1, 2, 3]", err
    assert "Bypassing sacct error" not in err


def test_cancelled_job_does_not_hang_its_parent(cluster: Cluster, tmp_path: Path) -> None:
    code = "job = executor.submit(time.sleep, 300)\nprint(job.job_id, flush=True)\njob.result()"
    parent = submit(cluster, tmp_path, code)
    assert parent.stdout is not None
    job = parent.stdout.readline().strip()
    cluster.wait_for("the job to run", lambda: job in cluster.jobs())
    cluster.slurm("scancel", job)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == 1
    assert "UncompletedJobError" in err


def test_lost_node_is_noticed_and_comes_back(cluster: Cluster) -> None:
    job = cluster.slurm(
        "sbatch", "--parsable", "--no-requeue", "-w", "n1", "--output=/dev/null", "--wrap", "exec sleep 300"
    ).strip()
    cluster.wait_for("the job to run", lambda: cluster.jobs("n1") == [job])
    slurmd = cluster.daemons["n1"]
    cluster.wait_for("its process", lambda: any(b"sleep\x00300" in command(pid) for pid in descendants(slurmd.pid)))
    processes = descendants(slurmd.pid)
    cluster.node_down("n1")
    assert not any(b"sleep" in command(pid) for pid in processes)
    cluster.wait_for("SLURM to notice", lambda: cluster.node_state("n1").startswith("down"))
    assert "NODE_FAIL" in cluster.slurm("sacct", "-o", "JobID,State,NodeList", "--parsable2", "-j", job)
    cluster.node_up("n1")
    assert cluster.slurm("srun", "-w", "n1", "echo", "back").strip() == "back"


def test_daemons_end_when_the_tests_are_killed() -> None:
    code = (
        "import signal\nfrom cluster.engines import cluster_running\n"
        "with cluster_running() as c:\n"
        "    print(c.folder, *(p.pid for p in c.daemons.values()), flush=True); signal.pause()"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    tests = subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    )
    assert tests.stdout is not None
    folder, *words = tests.stdout.readline().split()
    pids = [int(pid) for pid in words]
    assert len(pids) == 5
    tests.send_signal(signal.SIGKILL)
    tests.wait()
    until(lambda: not any(command(pid) for pid in pids), "the daemons to end", patience=30)
    shutil.rmtree(folder)  # this alone nobody is left to do


def test_postgres_takes_eight_at_once(cluster: Cluster) -> None:
    address = cluster.database()
    with connected(address) as one:
        one.cursor().execute("CREATE TABLE t (n int)")
        one.commit()
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        eight = [stack.enter_context(connected(address)) for _ in range(8)]

        def insert(n: int) -> None:
            eight[n].cursor().execute("INSERT INTO t VALUES (%s)", (n,))
            eight[n].commit()

        list(pool.map(insert, range(8)))
    assert query(address, "SELECT count(*), sum(n) FROM t") == [(8, 28)]


def test_study_and_run_in_one_server(cluster: Cluster, tmp_path: Path) -> None:
    import mlflow
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study_at, runs_at = cluster.database("study"), cluster.database("mlflow")
    optuna.create_study(study_name="s", storage=study_at).optimize(lambda trial: trial.suggest_float("x", 0, 1), 3)
    assert [t.number for t in optuna.load_study(study_name="s", storage=study_at).trials] == [0, 1, 2]
    assert query(study_at, "SELECT count(*) FROM trials WHERE state = 'COMPLETE'") == [(3,)]

    client = mlflow.MlflowClient(runs_at)
    run = client.create_run(client.create_experiment("e", artifact_location=str(tmp_path)))
    client.log_metric(run.info.run_id, "m", 0.5)
    assert mlflow.MlflowClient(runs_at).get_run(run.info.run_id).data.metrics == {"m": 0.5}


def command(pid: int) -> bytes:
    """Empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""

"""A tracking server that fails at the start, middle or end of a run: nothing is lost, nothing is repeated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient

from conftest import SMALL, Done, free_port
from faults.proxy import Fault, Proxy
from snnexp.tracking import ENVIRONMENT

pytestmark = pytest.mark.faults
FAULTS: tuple[Fault, ...] = ("refuses", "hangs", "is slow", "answers 500")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real MLflow server on the loopback address."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    environment = {**os.environ, **ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen([*command, *stores], env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        with suppress(OSError):
            if urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200:
                break
        time.sleep(0.2)
    yield port
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()


@pytest.mark.parametrize("when", ["start", "middle", "end"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails(
    fault: Fault, when: str, server: int, snnexp: Callable[..., Done], tried: Callable[..., None]
) -> None:
    first, count = {"start": (0, None), "middle": (12, 3), "end": (12, None)}[when]
    proxy = Proxy(server, fault, first, count)
    name = f"{fault}-{when}-{proxy.port}".replace(" ", "-")
    where = (f"tracking.uri=http://127.0.0.1:{proxy.port}", f"tracking.experiment={name}")
    try:
        done = snnexp(*SMALL, "trainer.epochs=4", *where)
        what = f"MLflow server {fault} at the {when}: results lost, repeated, or no word"
        assert "Traceback" not in done.err
        assert done.code == 0, done.err
        proxy.mend()
        sent = snnexp("task=sync", *where)
        assert sent.code == 0, sent.err
    finally:
        proxy.close()
    client = MlflowClient(f"http://127.0.0.1:{server}")
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    kept = [
        (run.info.status, Counter(m.step for m in client.get_metric_history(run.info.run_id, "val/accuracy")))
        for run in runs
    ]
    tried(what, 1, int(kept != [("FINISHED", Counter({1: 1, 2: 1, 3: 1, 4: 1}))]))

"""`task=ui`: serve the MLflow UI for the logged runs, on the loopback address."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from snnexp.errors import UserError, integer, require
from snnexp.masking import masked
from snnexp.record import Record
from snnexp.session import Session
from snnexp.signals import held
from snnexp.task.base import Task
from snnexp.tracking import ENVIRONMENT, for_mlflow, kept
from snnexp.training import Metrics

PATIENCE = 5.0  # seconds


class UI(Task):
    """Serve the store of `tracking` on http://127.0.0.1:`port` until Ctrl-C. Raises InvalidValue.

    `run` raises UserError if there is nothing to show, the port is taken, or results go to a server with its own UI.
    """

    recorded = False

    def __init__(self, port: int = 5000) -> None:
        self.port = checked_port(port)

    def run(self, session: Session, record: Record) -> Metrics:
        store, port = kept(session.tracker, "task=ui"), self.port
        if store.startswith("http"):
            raise UserError(f"tracking.uri={masked(store)} is a server with its own UI: open that address in a browser")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                other = port + 1 if port < 65535 else port - 1
                raise UserError(f"task.port={port} is taken by another program: choose another, e.g. task.port={other}")
        print(f"MLflow UI: http://127.0.0.1:{port}  (Ctrl-C ends it)", flush=True)
        options = shlex.split(f"-m mlflow server --host 127.0.0.1 --port {port} --workers 1")
        # the address is not an argument, because every user of the machine can read the arguments of a process
        environment = {**os.environ, **ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        _served([sys.executable, *options], environment | {"MLFLOW_BACKEND_STORE_URI": for_mlflow(store)})
        return {}


def _served(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a server until it or this process ends; its workers end with it, or they would keep the port."""
    with subprocess.Popen(command, env=environment, start_new_session=True) as server:
        try:
            if status := server.wait():
                raise UserError(f"the MLflow server ended with status {status}; its messages are above")
        finally:
            with held():
                _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the process group of `server`; kill it if it has not ended after `PATIENCE` seconds."""
    with suppress(ProcessLookupError):  # the group is gone
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(server.pid, number)
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                server.poll()  # a process that is not waited for stays in its group
                os.killpg(server.pid, 0)
                time.sleep(0.05)


def checked_port(port: object) -> int:
    """Return `port` if it is a TCP port, else raise InvalidValue."""
    number = integer("port", port, at_least=1)
    require(number <= 65535, "port", port, "at most 65535")
    return number

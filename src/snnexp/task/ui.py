"""`task=ui`: serve the MLflow UI over what was logged, on the loopback address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from snnexp.address import with_driver
from snnexp.errors import UserError, integer, require
from snnexp.masking import masked
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.base import Task
from snnexp.tracking import ENVIRONMENT, kept
from snnexp.training import Metrics


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
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        # the address is not an argument, because every user of the machine can read the arguments of a process
        environment = {**os.environ, **ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        subprocess.run(command, env=environment | {"MLFLOW_BACKEND_STORE_URI": with_driver(store)}, check=True)
        return {}


def checked_port(port: object) -> int:
    """Return `port` if it is a TCP port, else raise InvalidValue."""
    number = integer("port", port, at_least=1)
    require(number <= 65535, "port", port, "at most 65535")
    return number

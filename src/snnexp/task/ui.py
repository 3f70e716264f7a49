"""`task=ui`: the MLflow UI over what was logged, on the loopback address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from snnexp.address import masked
from snnexp.errors import UserError, integer
from snnexp.session import Session
from snnexp.tracking import ENVIRONMENT, kept
from snnexp.training import Metrics


def ui(session: Session, port: int) -> Metrics:
    """Serve the store of `tracking` on http://127.0.0.1:`port` until Ctrl-C.

    Raises UserError if there is nothing to show, the port is taken, or results go to a server that has a UI itself.
    """
    integer("port", port, at_least=1)
    store = kept(session.tracker, "task=ui")
    if store.startswith("http"):
        raise UserError(f"tracking.uri={masked(store)} is a server with its own UI: open that address in a browser")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"task.port={port} is taken by another program: choose another, e.g. task.port={port + 1}")
    print(f"MLflow UI: http://127.0.0.1:{port}  (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, **ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    subprocess.run([*command, "--backend-store-uri", store], env=environment, check=True)
    return {}

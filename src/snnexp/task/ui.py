"""`task=ui`: serve the MLflow UI for the logged runs, on the loopback address."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile

from snnexp.errors import UserError, integer, require
from snnexp.masking import masked
from snnexp.record import Record
from snnexp.session import Session
from snnexp.signals import held
from snnexp.task.base import Task
from snnexp.tracking import ENVIRONMENT, Store, for_mlflow, runs_address
from snnexp.training import Metrics

PATIENCE = 5.0  # seconds
LISTED = 10  # experiments


class UI(Task):
    """Serve the store of `tracking` on http://127.0.0.1:`port` until Ctrl-C, and print the addresses of the tables of
    runs, the newest experiment first. `open`: also open the first of them in the browser, if there is a screen. Of a
    server that has a UI of its own, the addresses are there. Raises InvalidValue.

    `run` raises UserError if there is nothing to show or the port is taken.
    """

    recorded = False

    def __init__(self, port: int = 5000, open: bool = True) -> None:
        self.port, self.open = checked_port(port), open

    def run(self, session: Session, record: Record) -> Metrics:
        store, port = Store(session.tracker, "task=ui"), self.port
        named = session.config["tracking"]["experiment"] if _was_given("tracking.experiment", record.overrides) else ""
        experiments = store.presented(named)
        if store.uri.startswith("http"):
            self._show(masked(store.uri).rstrip("/"), experiments, "this server has a UI of its own")
            return {}
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                other = port + 1 if port < 65535 else port - 1
                raise UserError(f"task.port={port} is taken by another program: choose another, e.g. task.port={other}")
        options = "--host 127.0.0.1 --port {} --workers 1 --uvicorn-opts '--log-level warning --no-access-log'"
        # the address is not an argument, because every user of the machine can read the arguments of a process
        address = dict.fromkeys(("MLFLOW_BACKEND_STORE_URI", "MLFLOW_REGISTRY_STORE_URI"), for_mlflow(store.uri))
        environment = {**os.environ, **ENVIRONMENT, **address, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with _server([sys.executable, "-m", "mlflow", "server", *shlex.split(options.format(port))], environment) as it:
            if _answers(it, port):
                self._show(f"http://127.0.0.1:{port}", experiments, "Ctrl-C ends it")
        return {}

    def _show(self, ui: str, experiments: Mapping[str, str], remark: str) -> None:
        """Print the addresses in the UI at `ui` of these experiments, {name: id}, and open the first."""
        addresses = {name: runs_address(ui, number) for name, number in experiments.items()}
        print(f"MLflow UI: {next(iter(addresses.values()), ui)}  ({remark})", flush=True)
        for name, address in list(addresses.items())[:LISTED] if len(addresses) > 1 else ():
            print(f"  {name}  {address}", flush=True)
        if self.open and _has_screen():
            webbrowser.open(next(iter(addresses.values()), ui))


def _was_given(key: str, overrides: Sequence[str]) -> bool:
    return any(override.lstrip("+").startswith(f"{key}=") for override in overrides)


def _has_screen() -> bool:
    """Return whether a person at a screen started this command; a browser inside a terminal is of no use."""
    shown = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(shown) and sys.stdout.isatty()


@contextmanager
def _server(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; after the block, wait until it ends. Its messages are shown only if it fails: UserError."""
    with (
        TemporaryFile() as said,
        subprocess.Popen(command, env=environment, start_new_session=True, stdout=said, stderr=said) as server,
    ):
        try:
            yield server
            if status := server.wait():
                said.seek(0)
                print(said.read().decode(errors="replace"), file=sys.stderr)
                raise UserError(f"the MLflow server ended with status {status}; its messages are above")
        finally:  # its workers end with it, or they would keep the port
            with held():
                _end(server)


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server listens; return False if it ended before."""
    while server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.1)
    return False


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

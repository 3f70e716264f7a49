"""SLURM with two nodes, and PostgreSQL, on this machine: started in a temporary folder, stopped by process id."""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waiting import until

NODES = ("n1", "n2")
SBIN = os.environ["PATH"] + ":/usr/sbin:/sbin"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
libc = ctypes.CDLL(None)

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[slurmctld]}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters={communication}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,sched_min_interval=100000
SlurmdParameters=config_overrides
SlurmdTimeout=10
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
MinJobAge=3600
KillWait=2
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=60 State=UP
"""


class StartFailed(Exception):
    """A daemon did not come up; the message holds the ends of all logs."""


@dataclass
class Cluster:
    """What the tests see: an environment for SLURM's commands, nodes to kill, databases to fill."""

    folder: Path
    user: str = field(default_factory=lambda: pwd.getpwuid(os.getuid()).pw_name)
    ports: dict[str, int] = field(default_factory=lambda: free_ports("slurmctld", "postgres", *NODES))
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """For sbatch, srun, submitit: this cluster, and the stand-in for sacct first on the path."""
        return os.environ | {"SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": f"{self.folder}/bin:{SBIN}"}

    def slurm(self, *command: str, timeout: float = 60) -> str:
        """The output of one of SLURM's commands."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def node_state(self, node: str) -> str:
        return self.slurm("sinfo", "-h", "-N", "-n", node, "-o", "%T").strip()

    def jobs(self, node: str | None = None, states: str = "R") -> list[str]:
        """Ids of the jobs that run (R), or wait (PD)."""
        return self.slurm("squeue", "-h", "-t", states, "-o", "%A", *(("-w", node) if node else ())).split()

    def node_down(self, node: str) -> None:
        """As if its power failed: slurmd and all that runs under it are gone at once; SLURM notices in 10 to 20 s."""
        kill_tree(self.daemons.pop(node))

    def node_up(self, node: str) -> None:
        if node not in self.daemons:
            self.start(node, "slurmd", "-D", "-N", node, "-f", f"{self.folder}/slurm.conf")
        self.wait_for(f"{node} to be idle", lambda: self.node_state(node) == "idle")

    def database(self, prefix: str = "db") -> str:
        """The address of a new, empty PostgreSQL database, for Optuna and MLflow alike."""
        name = f"{prefix}_{secrets.token_hex(4)}"
        address = f"postgresql+psycopg2://snnexp@127.0.0.1:{self.ports['postgres']}/"
        with connected(address + "postgres") as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {name}")
        return address + name

    # starting

    def start(self, name: str, *command: str, user: str | None = None, orphaned: int = signal.SIGTERM) -> None:
        """A daemon in the foreground, its output in `name`.log; it gets the signal `orphaned` if this process dies."""

        def prepare() -> None:
            libc.prctl(PR_SET_PDEATHSIG, orphaned)
            # what a daemon starts stays under it, even when its own parent ends: so kill_tree finds it
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1)

        more: dict[str, Any] = {}
        if user:
            entry = pwd.getpwnam(user)
            more = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd="/",
                start_new_session=True,
                preexec_fn=prepare,
                **more,
            )

    def start_slurm(self) -> None:
        (self.folder / "bin").mkdir()
        shutil.copy(Path(__file__).with_name("sacct"), self.folder / "bin")
        host = socket.gethostname()
        local = socket.gethostbyname(host).startswith("127.")
        line = "NodeName={0} NodeHostname={1} NodeAddr=127.0.0.1 Port={2} CPUs=1 RealMemory=1000 State=UNKNOWN"
        (self.folder / "slurm.conf").write_text(
            SLURM_CONF.format(
                host=host,
                user=self.user,
                folder=self.folder,
                ports=self.ports,
                names=",".join(NODES),
                # they bind to the host's own name instead of to every interface; munge's key guards either
                communication="NoInAddrAny,NoCtldInAddrAny" if local else "",
                nodes="\n".join(line.format(node, host, self.ports[node]) for node in NODES),
            )
        )
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        files = [f"--{option}={self.folder}/munge.{end}" for option, end in names.items()]
        self.start("munged", "munged", "--foreground", "--force", f"--log-file={self.folder}/munged.log", *files)
        self.wait_for("munged", (self.folder / "munge.socket").exists)
        self.start("slurmctld", "slurmctld", "-D", "-c", "-f", f"{self.folder}/slurm.conf")
        self.wait_for("slurmctld", lambda: "UP" in self.slurm("scontrol", "ping"))
        for node in NODES:
            self.start(node, "slurmd", "-D", "-N", node, "-f", f"{self.folder}/slurm.conf")
        for node in NODES:
            self.node_up(node)

    def start_postgres(self) -> None:
        user = "postgres" if os.getuid() == 0 else self.user  # it refuses to run as root
        data = self.folder / "postgres"
        data.mkdir(mode=0o700)
        if user != self.user:
            shutil.chown(data, user)
        programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
        self.start(
            "initdb",
            str(programs / "initdb"),
            "--auth=trust",
            "--username=snnexp",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "-D",
            str(data),
            user=user,
        )
        if self.daemons.pop("initdb").wait(120):
            raise RuntimeError("initdb failed")
        settings = ("listen_addresses=127.0.0.1", "fsync=off", "max_connections=100", f"unix_socket_directories={data}")
        self.start(
            "postgres",
            str(programs / "postgres"),
            "-D",
            str(data),
            "-p",
            str(self.ports["postgres"]),
            *(word for setting in settings for word in ("-c", setting)),
            user=user,
            orphaned=signal.SIGINT,
        )
        self.wait_for("postgres", lambda: bool(self.database()))

    def wait_for(self, what: str, there: Callable[[], bool], timeout: float = 60) -> None:
        error: Exception | None = None

        def reached() -> bool:
            nonlocal error
            for name, daemon in self.daemons.items():
                if daemon.poll() is not None:
                    raise RuntimeError(f"{name} ended with status {daemon.returncode} while waiting for {what}")
            try:
                error = None
                return there()
            except Exception as failure:
                error = failure
                return False

        try:
            until(reached, what, patience=timeout, progress=self.said, poll=0.1)
        except TimeoutError as late:
            raise late from error

    def said(self) -> int:
        """The number of different lines in all logs; a line that is repeated at another time is no progress."""
        texts = (log.read_text(errors="replace") for log in self.folder.glob("*.log"))
        return len({re.sub(r"\d+", "", line) for text in texts for line in text.splitlines()})

    def logs(self) -> str:
        """The last lines of every log."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n" + "\n".join(tail(log)) for log in logs)

    def stop(self) -> None:
        for name in ("n2", "n1", "slurmctld", "munged"):  # with whatever jobs are left
            if name in self.daemons:
                kill_tree(self.daemons.pop(name))
        if postgres := self.daemons.pop("postgres", None):
            postgres.send_signal(signal.SIGINT)  # disconnect everyone, and free the shared memory
            try:
                postgres.wait(20)
            except subprocess.TimeoutExpired:
                kill_tree(postgres)


@contextmanager
def cluster_running() -> Iterator[Cluster]:
    """A whole cluster, and nothing of it left afterwards. Raises StartFailed with the logs."""
    with ExitStack() as stack:
        # not in pytest's folder, which only its owner may enter: PostgreSQL runs as another user
        folder = Path(os.path.realpath(os.environ.get("TMPDIR", "/tmp"))) / f"snnexp-cluster-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o755)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        cluster = Cluster(folder)
        stack.callback(cluster.stop)
        try:
            cluster.start_postgres()
            cluster.start_slurm()
        except Exception as error:
            raise StartFailed(f"{error}\n{cluster.logs()}") from error
        yield cluster


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """A plain connection to a database, for the tests' own questions."""
    import psycopg2

    connection = psycopg2.connect(address.replace("+psycopg2", ""), connect_timeout=5)
    try:
        yield connection
    finally:
        connection.close()


def query(address: str, sql: str) -> list[tuple[Any, ...]]:
    with connected(address) as connection:
        cursor = connection.cursor()
        cursor.execute(sql)
        return list(cursor.fetchall())


def descendants(pid: int) -> list[int]:
    """All processes under `pid`."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in parents.get(parent, [])]
        found += new
    return found


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """SIGKILL for a process of ours and all below it; stopped first, so that it starts nothing meanwhile."""
    if process.poll() is None:
        process.send_signal(signal.SIGSTOP)

        def gone() -> bool:
            pids = [pid for pid in descendants(process.pid) if not zombie(pid)]
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not pids

        until(gone, f"the processes under {process.pid} to end")
        process.kill()
    process.wait()


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def free_ports(*names: str) -> dict[str, int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: s.getsockname()[1] for name, s in zip(names, sockets, strict=True)}


def tail(log: Path, lines: int = 30) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-lines:]


if __name__ == "__main__":  # by hand, a shell in a running cluster: python -m cluster.engines, in the folder of tests
    with cluster_running() as running:
        print(f"study and MLflow: {running.database()}", file=sys.stderr)
        subprocess.run([os.environ.get("SHELL", "sh")], env=running.environment)

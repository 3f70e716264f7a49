"""Locks between real processes: what a kill, a fork, a second thread and a long wait do to them."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snnexp.lock import is_locked, locked, try_lock
from waiting import until

HOLDER = """
import sys
from pathlib import Path
from snnexp.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.lock"


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends or it is killed."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@contextmanager
def child(function: Callable[[], bool], wait: bool = False) -> Iterator[Callable[[], bool]]:
    """A forked process; it calls `function` at once, or with `wait` when its result is asked for."""
    (start, go), (read, write) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        if wait:
            os.close(go)
            os.read(start, 1)
        os.write(write, b"1" if function() else b"0")
        os._exit(0)

    def result() -> bool:
        os.write(go, b"x")
        return os.read(read, 1) == b"1"

    yield result
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for end in (start, go, read, write):
        os.close(end)


def is_free(path: Path) -> bool:
    lock = try_lock(path)
    if lock:
        lock.release()
    return lock is not None


def test_one_holder_at_a_time_and_the_others_are_told(path: Path) -> None:
    assert is_locked(path) is False
    with holder(path) as process:
        assert is_locked(path) is True
        assert try_lock(path) is None
        with (
            pytest.raises(TimeoutError, match=rf"a\.lock is in use by process {process.pid} \("),
            locked(path, patience=0.1),
        ):
            pass
        process.kill()
        process.wait()
        assert is_locked(path) is False  # the system releases what a killed process held
        assert is_free(path)


def test_an_older_version_and_this_one_exclude_each_other(path: Path) -> None:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert try_lock(path) is None
        assert is_locked(path) is True
    with locked(path), path.open("w") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_wait_ends_soon_after_the_release(path: Path) -> None:
    with holder(path) as process:
        threading.Timer(0.3, process.kill).start()
        begin = time.monotonic()
        with locked(path, patience=60):
            assert 0.2 < time.monotonic() - begin < 5


def test_a_wait_without_limit_is_logged_once(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("snnexp.lock.TELL_AFTER", 0.1)
    with locked(path):
        assert not caplog.records
    with holder(path) as process:
        threading.Timer(0.3, process.kill).start()
        with locked(path):
            pass
    (record,) = caplog.records
    assert record.getMessage().startswith(f"waiting for {path}, which is held by process {process.pid} (")


def test_two_threads_and_two_holds_of_one_thread_exclude_each_other(path: Path) -> None:
    first = try_lock(path)
    assert first is not None
    assert try_lock(path) is None
    assert is_locked(path) is True
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(is_free(path)))
    thread.start()
    thread.join()
    thread = threading.Thread(target=first.release)  # a lock may be given back by another thread
    thread.start()
    thread.join()
    assert found == [False]
    assert is_free(path)


def test_threads_take_turns(path: Path) -> None:
    inside, most, ended = 0, 0, 0
    waiting: list[int] = []

    def work() -> None:
        nonlocal inside, most, ended
        for _ in range(5):
            waiting.append(1)
            with locked(path, patience=60):
                waiting.pop()
                inside += 1
                most = max(most, inside)
                until(lambda: waiting or ended == 3, "another thread that wants the lock")
                inside -= 1
        ended += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_forked_child_neither_releases_the_lock_nor_holds_it(path: Path) -> None:
    lock = try_lock(path)
    assert lock is not None

    def end() -> bool:
        """What a child does that ends: it releases what it inherited, and its objects are collected."""
        nonlocal lock
        taken = try_lock(path)
        assert lock is not None
        lock.release()
        lock = None
        gc.collect()
        return taken is None

    with child(end) as result:
        assert result()
    assert is_locked(path) is True  # though the child released it and has ended
    with child(lambda: is_free(path), wait=True) as result:
        lock.release()
        assert is_free(path)  # though the child lives
        assert result()  # and the child may take it


def test_a_killed_holder_leaves_nothing_to_its_forked_child(path: Path) -> None:
    # the child tells its number itself: in this moment it has let go of what it inherited
    code = HOLDER.replace('print("held"', "import os, signal; os.fork() and signal.pause(); print(os.getpid()")
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        try:
            assert is_locked(path) is True
            process.kill()
            process.wait()
            os.kill(orphan, 0)  # it lives
            assert is_free(path)
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_forks_while_other_threads_lock(path: Path) -> None:
    """As a sweep does, whose heartbeat locks the storage while jobs are forked."""
    end = threading.Event()

    def work(own: Path) -> None:
        while not end.is_set():
            with locked(own, patience=60):
                pass

    threads = [threading.Thread(target=work, args=(path.with_name(f"{n}.lock"),)) for n in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with child(lambda: is_free(path)) as result:
                assert result()
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert all(is_free(path.with_name(f"{n}.lock")) for n in range(2))


def test_a_file_that_cannot_be_opened_tells_nothing(path: Path, tmp_path: Path) -> None:
    assert is_locked(tmp_path / "nowhere" / "a.lock") is False
    assert not (tmp_path / "nowhere").exists()
    path.mkdir()
    assert is_locked(path) is None
    with pytest.raises(OSError, match="directory"):
        try_lock(path)

"""A cluster for the tests of this folder, which run only when asked for: `pytest -m cluster tests/cluster`."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from cluster.engines import Cluster, StartFailed, cluster_running


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: needs SLURM and PostgreSQL; run by `make test-cluster` and in CI")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if config.option.markexpr == "cluster" else True


@pytest.fixture(scope="session")
def engines() -> Iterator[Cluster]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout`, or a cancelled CI job: clean up then, too
    try:
        with cluster_running() as running:
            yield running
    except StartFailed as failure:
        pytest.exit(f"the cluster did not start: {failure}", returncode=1)


@pytest.fixture
def cluster(engines: Cluster) -> Iterator[Cluster]:
    """The session's cluster, with both nodes up and no job running."""
    yield engines
    engines.slurm("scancel", "--user", engines.user)
    for node in ("n1", "n2"):
        engines.node_up(node)

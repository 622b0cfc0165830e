"""Fixtures of the tests of the Ray backend, a plugin of pytest: a cluster of two nodes, and a tiny model."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from st_hpo.testing import build_tiny_model

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


class RunningCluster:
    """The cluster, if it runs: from the first test that needs it to the last test of the modules about it."""

    def __init__(self) -> None:
        self.found: Cluster | None = None

    def get(self) -> Cluster:
        if self.found is None:
            self.found = Cluster(
                initialize_head=True, connect=True, head_node_args={**NODE, "include_dashboard": False}
            )
            self.found.add_node(wait=False, **NODE)
            self.found.wait_for_nodes(timeout=300)
        return self.found

    def stop(self) -> None:
        if self.found is not None:
            ray.shutdown()
            self.found.shutdown()
            self.found = None


RUNNING = RunningCluster()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Leaves no cluster to tests of other modules, which start a Ray of their own."""
    if nextitem is None or not nextitem.path.name.startswith("test_ray"):
        RUNNING.stop()


@pytest.fixture
def cluster() -> Cluster:
    """Two nodes with one CPU each, on this machine, to which this process is connected."""
    return RUNNING.get()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))

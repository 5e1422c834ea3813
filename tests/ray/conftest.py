"""Two replicas for all tests that leave them as they found them."""

from collections.abc import Iterator

import pytest

from tests.ray.cluster import Cluster, cluster, wait_for

QUEUE_SIZE = 4


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = "--min-replicas", "2", "--max-replicas", "2"
    with cluster(tmp_path_factory.mktemp("two"), *options, MEDUSA_QUEUE_SIZE=str(QUEUE_SIZE)) as running:
        wait_for("two replicas", lambda: len(running.samples("medusa_worker_up")) == 2)
        yield running

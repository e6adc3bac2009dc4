"""Runs that several tests of a cluster look at."""

from collections.abc import Iterator

import pytest
from helpers.ray_nodes import Node
from helpers.twin_runs import LONG, Twins, keeping_states

from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train import worker
from vamf.cluster.train.tracked_run import launch, new


@pytest.fixture(scope="session")
def twins(local_ray: None, tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """The same experiment without and with Ray."""
    storage = tmp_path_factory.mktemp("twins")
    one, two = storage / "one", storage / "two"
    launch(LONG, new(one, tracking_uri, "digits"), Scaling())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "work", keeping_states())
        launch(LONG, new(two, tracking_uri, "digits"), Scaling(workers=2))
    return Twins(LONG, tracking_uri, one, two)


@pytest.fixture
def nodes(warm_workers: None) -> Iterator[list[Node]]:
    """The nodes that a test has started, which end with it."""
    started: list[Node] = []
    try:
        yield started
    finally:
        for node in reversed(started):
            node.stop()

"""Shared fixtures: deterministic seeds and one thread a worker."""

import pytest
import torch

from tests.support.world import World

FOUND = pytest.StashKey[set[str]]()


def pytest_itemcollected(item):
    item.config.stash.setdefault(FOUND, set()).add(item.nodeid)


@pytest.fixture
def found(request):
    """Ids of the tests of this session's files, those that were not chosen too."""
    return request.config.stash[FOUND]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def seen(request, record_property):
    """Notes what a test of a fault has seen, for docs/faults.md: `make faults` writes it from the results."""

    def note(text):
        (fault,) = request.node.get_closest_marker("fault").args
        record_property("fault", fault)
        record_property("seen", text)

    return note


def _pool(size):
    world = World(size)
    yield world
    world.close()


@pytest.fixture(scope="session")
def two():
    """Two gloo ranks, started once."""
    yield from _pool(2)


@pytest.fixture(scope="session")
def four():
    """Four gloo ranks, started once."""
    yield from _pool(4)


@pytest.fixture(params=["two", pytest.param("four", marks=pytest.mark.slow)])
def pool(request):
    """Two ranks every day, and four."""
    return request.getfixturevalue(request.param)

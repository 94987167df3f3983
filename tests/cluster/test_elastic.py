"""A host is lost under an elastic torchrun: the others go on without it, and with it once it is back."""

import time
from itertools import pairwise
from statistics import mean

import pytest
import torch

from tests.cluster import elastic
from tests.cluster.hosts import network  # noqa: F401

pytestmark = pytest.mark.slow


def until(folder, agents, ready):
    """Wait for something in what was noted."""
    end = time.monotonic() + 60
    while not (notes := elastic.noted(folder)) or not ready(notes):
        said = [agent.said.read_text()[-3000:] for agent in agents]
        assert agents[0].process.is_alive(), said[0]
        assert time.monotonic() < end, said
        time.sleep(0.05)


@pytest.mark.fault("a host that is lost under an elastic torchrun, and comes back")
def test_a_host_that_is_lost_and_comes_back_changes_nothing(network, seen, tmp_path):  # noqa: F811
    hosts, folder = network(), tmp_path / "elastic"
    folder.mkdir()
    # A moment after every step: something has to happen before the last one.
    agents = [elastic.Agent(hosts, number, folder, 0.1) for number in range(2)]
    until(folder, agents, lambda notes: notes[-1]["step"] >= 8)
    agents[1].lose()
    until(folder, agents, lambda notes: notes[-1]["ranks"] == 2 and notes[-1]["step"] >= 14)
    hosts[1].heal()
    agents[1] = elastic.Agent(hosts, 1, folder, 0.1)
    for agent in agents:
        agent.process.join(90)
        assert agent.process.exitcode == 0, agent.said.read_text()[-3000:]

    notes = elastic.noted(folder)
    ranks = [line["ranks"] for line in notes]
    (lost, after), (last, back) = [(a, b) for a, b in pairwise(notes) if a["ranks"] != b["ranks"]]
    assert (ranks[0], after["ranks"], ranks[-1]) == (4, 2, 4)
    # From the last checkpoint when it is lost; all is saved before others join.
    assert lost["step"] - elastic.EVERY < after["step"] <= lost["step"] + 1
    assert after["step"] % elastic.EVERY == 1
    assert back["step"] == last["step"] + 1

    elastic.alone(tmp_path / "alone")
    found, expected = elastic.losses(folder), elastic.losses(tmp_path / "alone")
    apart = abs(mean(found) - mean(expected))
    assert apart < 1e-5
    assert max(map(lambda one, other: abs(one - other), found, expected)) < 1e-5
    weights = [torch.load(path / "weights.pt", weights_only=True) for path in (folder, tmp_path / "alone")]
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=0, atol=1e-5)
    seen(
        f"four ranks up to step {lost['step']}, two from step {after['step']} to {last['step']}, four again from step "
        f"{back['step']}: the mean loss of all steps is {apart:.0e} from one process's"
    )

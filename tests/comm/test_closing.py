"""Process groups of ours end where we say so, in order, and not with Python (pytorch/pytorch#179291)."""

import weakref

import pytest
import torch
import torch.distributed as dist

from lightning_so import Restartable
from lightning_so.comm import Replicated
from tests.support.forked import Started
from tests.support.trainings import train

SGD = (torch.optim.SGD, {"lr": 0.1})


def closed():
    """Whether the group is gone once it was closed; the default one stays, also when it is closed again."""
    comm = Replicated()
    group, exchanged = weakref.ref(comm._group), comm.start_largest(dist.get_rank())()
    comm.close()
    comm.close()
    return exchanged, group() is None, dist.is_initialized()


def test_a_group_ends_when_it_is_closed(two):
    assert two.run(closed) == [(1, True, True)] * 2


class Broken(Restartable):
    """Raises, with a question underway that no step will read."""

    def on_train_batch_end(self, *arguments) -> None:
        super().on_train_batch_end(*arguments)
        raise ArithmeticError


def groups_of(folder):
    """How many groups there are after fits; with and without an error."""
    made = dist.distributed_c10d._world.pg_map
    counts = [len(made)]
    for kind in (Restartable, Broken):
        try:
            train("ddp", None, SGD, steps=3, callbacks=[kind(folder / kind.__name__)])
        except ArithmeticError:
            counts.append(-1)
        counts.append(len(made))
    return counts


def test_after_a_fit_its_group_is_gone(two, tmp_path):
    for before, after, error, later in two.run(groups_of, tmp_path):
        assert (after, error, later) == (before, -1, before)


@pytest.mark.slow
def test_ranks_that_trained_with_restartable_end(tmp_path):
    """On torch 2.5 and 2.6 some hung at their end: a group's threads and its end waited for each other.

    pytorch/pytorch#56297, and pytorch/pytorch#154976, by which its end gives Python's lock back.
    """
    line = ("examples.restart", "--width", "16", "--steps", "6", "--every", "2", "--devices", "2")
    process = Started(tmp_path / "said", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *line,
                      "--folder", tmp_path / "run")  # fmt: skip
    done = process.ended(100)
    assert done.returncode == 0, done.stdout + done.stderr

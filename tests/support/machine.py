"""A simulated machine: time passes where a test says so, and nowhere else."""

import functools

import torch

from lightning_so import SOAP, attach
from lightning_so.core import engine as engine_module
from lightning_so.core.overhead.clock import Clock
from tests.support.problems import Net, batch

METHOD = SOAP(start=4, period=16)


class Machine(Clock):
    """A clock that stands still but for `pass_`.

    Attributes:
        own: Seconds of a forward and backward pass.
        steady: Of what comes at every step.
        solve: Of one solve.
        passes: Seconds of each step so far.
    """

    def __init__(self, own=1.0, steady=0.05, solve=0.04) -> None:
        super().__init__()
        self.own, self.steady, self.solve, self.now, self.passes = own, steady, solve, 0.0, []

    def moment(self):
        return self.now

    def into(self, engine, patch):
        """Be the clock of an engine, whose stages take time from now on; the last engine's machine counts."""
        engine.stopwatch.timer = self
        solved, folded = engine_module.solve, engine_module.fold_gradients
        solved, folded = (getattr(f, "original", f) for f in (solved, folded))

        @functools.wraps(solved)
        def solve(units, numbers, rung):
            self.now += self.solve * len(numbers)
            return solved(units, numbers, rung)

        @functools.wraps(folded)
        def fold(*args):
            self.now += self.steady
            return folded(*args)

        solve.original, fold.original = solved, folded
        patch.setattr(engine_module, "solve", solve)
        patch.setattr(engine_module, "fold_gradients", fold)
        return engine

    def train(self, net, optimizer, steps, each=lambda step: None):
        """Train; each step takes its own time too."""
        for step in steps:
            begin = self.now
            optimizer.zero_grad()
            x, y = batch(step)
            loss = torch.nn.functional.cross_entropy(net(x), y)
            self.now += self.own
            loss.backward()
            each(step)
            optimizer.step()
            self.passes.append(self.now - begin)

    def share(self, last):
        """What is not the training's own in the last steps, as a share of it."""
        return sum(self.passes[-last:]) / (self.own * last) - 1


def attached(patch, machine=None, method=METHOD, share=0.3, **options):
    """A net, its optimizer, an engine on a machine, and what it has told."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    engine = attach(net, optimizer, method, max_overhead=share, **options)
    told = []
    engine.tell = told.append
    (machine or Machine()).into(engine, patch)
    return net, optimizer, engine, told


def ranks(shares):
    """On a rank: a training whose ranks have clocks of different speeds; what is chosen, and the weights.

    Args:
        shares: By rank, seconds of a solve.
    """
    from unittest import mock

    import pytest
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    net = DistributedDataParallel(Net())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    engine = attach(net, optimizer, METHOD, max_overhead=0.3)
    machine = Machine(solve=shares[dist.get_rank()])
    chosen = []
    with pytest.MonkeyPatch.context() as patch, mock.patch("warnings.warn"):
        machine.into(engine, patch)
        machine.train(net, optimizer, range(70), lambda _: chosen.append(engine.parts.overhead.choice))
    engine.detach()
    return chosen, {name: value.clone() for name, value in net.state_dict().items()}

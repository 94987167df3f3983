"""What the host does at each step does not grow with blocks where nothing changes: counted, not timed."""

import sys
from collections import Counter

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_so import SOAP, Muon, attach
from lightning_so.contract.unit import Unit
from lightning_so.core.matrices.scratch import views
from lightning_so.core.schedule.schedule import Schedule
from tests.support.operations import Operations


class Dispatched(Operations):
    """Views too."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.found["all"] += 1
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("shapes", [[(3, 4)], [(3, 2, 2)], [(3, 3), (3,)], [(3, 1, 3), (3,)]], ids=str)
def test_views_of_a_batch_are_a_few_calls_and_the_views_of_each_row(shapes):
    shapes, batch = [torch.Size(shape) for shape in shapes], torch.randn(50, 3, 4)
    with Dispatched() as few:
        found = views(batch, shapes)
    assert few.found["all"] <= 5
    each = [views(row[None], shapes) for row in batch]
    for view, alone in zip(found, [view for of_row in each for view in of_row], strict=True):
        assert view.data_ptr() == alone.data_ptr()
        assert (view.shape, view.stride()) == (alone.shape, alone.stride())


@settings(deadline=None)  # a machine that is shared is slow at times
@example([0] * 8, 0, 20)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(0, 40), st.integers(0, 200))
def test_overdue_units_are_those_past_their_bound(tried, origin, step):
    schedule = Schedule([Unit(0, row, 0, 0, 1.0, period=1 + row % 3) for row in range(len(tried))])
    schedule.tried, schedule.origin, schedule.every = tried, origin, [2**unit.row for unit in schedule.units]
    late = [unit for unit in range(len(tried)) if step - max(tried[unit], origin) > schedule.bound(unit)]
    assert schedule.overdue(step) == late


def calls(method, layers, steps=60):
    """Python calls of ours, by function, in a step after some."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(layers)))
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True), Counter()
    attach(model, optimizer, method)

    def count(frame, event, _):
        code = frame.f_code
        if event == "call" and "lightning_so" in code.co_filename and "<lambda>" not in code.co_qualname:
            found[code.co_qualname.partition(".<")[0]] += 1

    for step in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(4, 4)
        if step == steps - 1:
            sys.setprofile(count)
        try:
            optimizer.step()
        finally:
            sys.setprofile(None)
    return found


#: What asks a parameter for its gradient, weight or moment, each of which only it can give.
EACH = {"Access.grad", "Access.weight", "Access.state", "Matrices._piece"}
#: A cold block is asked whether it may become warm; Muon's are never.
COLD = {"ready", "Muon.ready", "Units.of_block"}


#: Of units that are due.
DUE = {"Schedule.due", "Units.__getitem__"}


@pytest.mark.parametrize(
    ("method", "asked"), [(SOAP(start=8), EACH | DUE), (Muon(), EACH | COLD)], ids=["soap", "muon"]
)
def test_nothing_but_numbers_is_asked_of_each_block(method, asked):
    few, many = calls(method, 10), calls(method, 40)
    grown = {name for name in many if many[name] > few[name] + 20}
    assert grown - asked == set()

"""A step without numbers: what the optimizer and the method will hold is there after it, and nothing was computed."""

import math
from dataclasses import replace
from functools import partial

import torch

from lightning_so.cli.planning.tracker import Tracker
from lightning_so.contract.method import Method
from lightning_so.core.assembly import Parts, assemble
from lightning_so.core.device.choose import Chosen
from lightning_so.core.host import Host
from lightning_so.core.options import Options
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.plan.recommended import recommended
from lightning_so.core.report import Report
from lightning_so.core.schedule import budget
from lightning_so.core.schedule.schedule import Rung
from lightning_so.core.schedule.units import Units
from lightning_so.core.solves.flight import Flight, launch, solve
from lightning_so.core.solves.line import InLine
from lightning_so.core.solves.swap import land
from lightning_so.core.statistics.observe import fold_gradients
from lightning_so.core.step import act, finish
from lightning_so.core.step.progress import Progress

#: Steps at which intervals are at their shortest, so that the most is solved at one.
EARLY = 32


def assembled(host: Host, options: Options, device: torch.device) -> Parts:
    """The parts of an engine, as on a device of which nothing is asked: ways of computing are the usual ones.

    Args:
        host: The training, of tensors without numbers.
        options: What was asked for.
        device: For which they are.

    Returns:
        The parts.
    """
    mixture = on_device(options.mixture or recommended(host.base), device)
    return assemble(host, replace(options, mixture=mixture, overhead=None), Report(), Chosen())


def on_device(mixture: Mixture, device: torch.device) -> Mixture:
    """Rules whose methods have the tiles that they would choose on a device."""

    def fitted(method: Method) -> Method:
        # Methods see tensors without numbers, which tell no device.
        own = getattr(method, "cap_on", None)
        return method if own is None else replace(method, cap=own(device))  # type: ignore[type-var]

    return mixture.each(fitted)


@torch.no_grad()
def rehearse(parts: Parts, *, foreach: bool, lag: int) -> int:
    """Make a step of cold blocks and one of warm ones, and observe and solve as much as one does at the beginning.

    Args:
        parts: The parts; their model has gradients.
        foreach: Whether the optimizer steps on all parameters in one call, as it does on a GPU.
        lag: Steps between a solve and its use.

    Returns:
        Bytes of what a step makes and lets go, at their most.
    """
    for group in parts.host.optimizer.param_groups if foreach else ():
        if group.get("foreach", False) is None and not group.get("fused"):
            group["foreach"] = True
    due = max((_busiest(parts, warm=warm) for warm in (True, False)), key=partial(_numbers, parts.units))
    set_warm(parts, warm=False)
    _step(parts)  # It makes what is kept, which is counted by itself.
    most = _step(parts)
    set_warm(parts, warm=True)
    solving = _observe_and_solve(parts, due, lag)
    _step(parts)
    # Where saved weights and work space have room inside a step alone, they are not there yet while units are solved:
    # but for weights that a slope is still to be measured from.
    saved = sum(stack.hidden.nbytes for stack in parts.stacks if stack.slopes is None)
    later = saved + parts.matrices.scratch.nbytes()
    return max(most, _step(parts), solving - (later if parts.matrices.lean else 0))


def set_warm(parts: Parts, *, warm: bool) -> None:
    """Have all blocks take part in steps, cold or warm."""
    for index, stack in enumerate(parts.stacks):
        parts.roster.live[index] = [*range(len(stack.blocks))]
        parts.roster.warm[index] = [warm] * len(stack.blocks)
    parts.roster.regroup_all()


def _step(parts: Parts) -> int:
    """Make one step; bytes of what it makes and lets go."""
    current, host = Progress(), parts.host
    with Tracker() as before:
        fold_gradients(parts.roster, parts.matrices)
        act.begin(current, [*parts.roster], parts.stacks, host, parts.matrices, {}, parts.chosen.ways.rotation)
    with Tracker() as base:
        host.optimizer.step()
    with Tracker() as after:
        finish.finish(current.hidden, 0, host, parts.matrices, parts.chosen.ways, measured=True)
    parts.matrices.forget()
    # Here the optimizer steps on whole parameters; a rank will have it step on its pieces.
    mine, whole = (sum(of(param) for param in host.params) for of in (lambda p: host.access.weight(p).numel(), _numel))
    return max(before.most, after.most, base.most * mine // max(1, whole))


def _observe_and_solve(parts: Parts, due: list[int], lag: int) -> int:
    """Fold what was observed of all blocks, and solve units; bytes of what is made and let go."""
    places = [(index, row) for index, stack in enumerate(parts.stacks) for row in range(len(stack.blocks))]
    if parts.matrices.lean:
        parts.matrices.scratch.clear()
    with Tracker() as found:
        for recorder in parts.recorders:
            own = [place for place in places if parts.stacks[place[0]].method is recorder.method]
            for index, row in own:
                parts.stacks[index].tapping.windows(parts.stacks[index].stats, row)
            parts.windows.fold(own, 1, 1.0)
        fold_gradients(parts.roster, parts.matrices)
        flights = list[Flight]()
        for some in parts.units.portions(due, parts.host.team.ranks):
            flights.append(launch(parts.units, some, solve, parts.host.team, 0, InLine()))
            if not lag:
                land(flights, [], parts.landing)
        land(flights, [], parts.landing)
    return found.most


def _busiest(parts: Parts, *, warm: bool) -> list[int]:
    """The most units that a step solves, of those while intervals are short."""
    set_warm(parts, warm=warm)
    units, found = Units.of(parts.stacks, parts.host.team.ranks), list[list[int]]()  # Its schedule may be run.
    for step in range(1, EARLY + 1):
        found.append(budget.due(units, parts.roster, parts.host, parts.budget, step, entering=False))
        for number in found[-1]:
            units.schedule.record(number, good=True, rung=Rung.PLAIN)
    return max(found, key=partial(_numbers, units))


def _numbers(units: Units, due: list[int]) -> int:
    """How many numbers are solved for."""
    return sum(math.prod(units[number].shape) for number in due)


def _numel(param: torch.Tensor) -> int:
    return param.numel()

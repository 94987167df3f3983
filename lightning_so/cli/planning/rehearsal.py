"""A step without numbers: what the optimizer and the method will hold is there after it, and nothing was computed."""

from dataclasses import replace

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
from lightning_so.core.statistics.observe import fold_gradients
from lightning_so.core.step import act, finish
from lightning_so.core.step.progress import Progress


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
def rehearse(parts: Parts, *, foreach: bool) -> int:
    """Make a step of cold blocks and one of warm ones.

    Args:
        parts: The parts; their model has gradients.
        foreach: Whether the optimizer steps on all parameters in one call, as it does on a GPU.

    Returns:
        Bytes of what a step makes and lets go, at their most.
    """
    for group in parts.host.optimizer.param_groups if foreach else ():
        if group.get("foreach", False) is None and not group.get("fused"):
            group["foreach"] = True
    most = 0
    for warm in (False, True):
        set_warm(parts, warm=warm)
        _step(parts)  # It makes what is kept, which is counted by itself.
        most = max(most, _step(parts))
    return most


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


def _numel(param: torch.Tensor) -> int:
    return param.numel()

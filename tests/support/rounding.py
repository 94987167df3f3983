"""A device with tensor cores, emulated: float32 factors are rounded to 11 bits where torch is told to (TF32)."""

import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_so.linalg.precision import rounded

PACKAGE = f"{Path(__file__).parents[2] / 'lightning_so'}/"
#: Where passes of ours go through the graph of a model, whose products are its own.
PASSES = "core/statistics/fisher.py _run"
aten = torch.ops.aten
#: Products, and how many arguments they add to and do not multiply.
PRODUCTS = {aten.mm: 0, aten.bmm: 0, aten.mv: 0, aten.addmm: 1, aten.addmm_: 1, aten.addmv: 1, aten.addmv_: 1}
PRODUCTS |= {aten.baddbmm: 1, aten.baddbmm_: 1, aten.addbmm: 1, aten.addr: 1}
#: Bits of a float32's mantissa that TF32 has not.
CUT = 13


def to_tf32(x):
    """The nearest number with ten bits of mantissa."""
    if x.dtype is not torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + (1 << CUT - 1)) & -(1 << CUT)).view(torch.float32)


def callers():
    """Functions of the package that run now, "linalg/tiles.py turn", the innermost first; none in a model's passes."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        if (path := frame.f_code.co_filename).startswith(PACKAGE):
            found.append(f"{path.removeprefix(PACKAGE)} {frame.f_code.co_name}")
        frame = frame.f_back
    return [] if found[:1] == [PASSES] else found


class TensorCores(TorchDispatchMode):
    """Rounds what products multiply, while torch is told to.

    Attributes:
        ours: Of every product of float32 numbers that was rounded and that the package made, its `callers`.
        theirs: How many others were rounded.
    """

    def __init__(self, *, ours_alone=False):
        super().__init__()
        self.ours_alone, self.ours, self.theirs = ours_alone, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        added = PRODUCTS.get(func.overloadpacket)
        if added is not None and args[-1].dtype is torch.float32 and rounded():
            found = callers()
            self.theirs += not found
            if found:
                self.ours.append(found)
            if found or not self.ours_alone:
                args = (*args[:added], *map(to_tf32, args[added:]))
        return func(*args, **(kwargs or {}))

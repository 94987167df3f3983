"""What a device computes in one of several ways, of which one is faster there: the results differ by rounding."""

from dataclasses import dataclass, fields
from typing import Any

import torch

from lightning_so.errors import check_choice
from lightning_so.linalg.polar import PolarFactor


@dataclass(frozen=True)
class Ways:
    """How bases, polar factors and rotations are computed. What is None is for the engine to find out, by measuring.

    Attributes:
        refresh: Of bases that are warm: by "householder", or by two factorisations of "cholesky", which a device
            batches; what these cannot do is left to the other at the next step.
        polar: What a float32 polar factor multiplies: "fp32", or "fp16" with restarts.
        rotation: What a rotation multiplies, in float32: as "torch" is told (`set_float32_matmul_precision`), "fp32",
            or "tf32", rounded to 11 bits on a device with tensor cores.
        padding: Of the polar factors of different shapes: each shape "apart", or some of them "padded" with zeros to
            one, in one call; see `linalg.padding`.

    Example:
        >>> Ways(refresh="cholesky").polar is None
        True
    """

    refresh: str | None = None
    polar: str | None = None
    rotation: str | None = None
    padding: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        for field in fields(self):
            check_choice("Ways", field.name, getattr(self, field.name), (None, *WAYS[field.name]))

    def products(self, dtype: torch.dtype) -> torch.dtype | None:
        """In what the polar factors of matrices of a dtype are multiplied; None for that dtype."""
        return torch.float16 if self.polar == "fp16" and dtype is torch.float32 else None

    def over(self, others: "Ways") -> "Ways":
        """These ways, and those of others where these say nothing."""
        return Ways(**{name: mine or getattr(others, name) for name, mine in vars(self).items()})


#: By field of `Ways` what it may be. The first is that of a CPU, and of whatever is not faster otherwise.
WAYS = {
    "refresh": ("householder", "cholesky"),
    "polar": ("fp32", "fp16"),
    "rotation": ("torch", "tf32", "fp32"),
    "padding": ("apart", "padded"),
}


class ByDevice:
    """The half of a method that computes in `Ways`: its statistics hold them, as `ways`."""

    def choose(self, stats: Any, ways: Ways) -> None:
        """See `contract.method.TakesWays`."""
        stats.ways = ways

    def quick(self, stats: Any) -> bool:
        """See `contract.method.SolvesQuickly`; of methods without units nothing."""
        return stats.ways.refresh == "cholesky"

    def polar_factor(self, stats: Any, dtype: torch.dtype) -> PolarFactor:
        """See `contract.method.BendsByPolarFactor`."""
        return PolarFactor(precision=stats.ways.products(dtype))

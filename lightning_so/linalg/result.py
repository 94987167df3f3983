"""The outcome of a solve: numerical failure is data, never an exception."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Result:
    """What a solve returned.

    Attributes:
        value: The solved tensor; meaningless unless `ok`.
        ok: Whether `value` is finite and may replace the last one.
        order: The permutation of the columns that the solve applied, shape (n,), or None.
        attempts: Rungs of the failure ladder that were tried (1 = the plain solve worked).
        iterations: Steps that an iteration took; 0 where there is none.
        residual: Largest entry of what should be zero, relative; 0 where it is not measured.
    """

    value: Tensor
    ok: bool
    order: Tensor | None = None
    attempts: int = 1
    iterations: int = 0
    residual: float = 0.0

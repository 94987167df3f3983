"""SketchySGD: the base's step through the damped inverse of a sketch of the curvature.

Legend: r directions, n numbers of this rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.contract.vector_method import MATRICES, Owned, Step, VectorState, adaptive
from lightning_so.errors import ConfigError, check_choice, check_count, check_range
from lightning_so.linalg.nystrom import Nystrom as Sketch
from lightning_so.linalg.nystrom import nystrom
from lightning_so.linalg.vectors import Space

#: Sketches at the first step, each from the eigenvectors of the last.
FIRST = 3


@dataclass(frozen=True)
class Nystrom:
    """Divide the base's step by the curvature along its r largest directions; what is beside them stays as it is.

        Y = A Omega',   A ~ U'L U (Nystrom),   u <- rho (U'L U + rho)^-1 u = u - U'(L / (L + rho)) U u

    The learning rate of the base is that of what was not sketched, whose largest curvature is about `curv/lambda_rank`,
    where SGD alone has `curv/lambda_max` to fear. Momentum, schedule and weight decay of the base are kept, since all
    are linear in gradients: the decay is divided as the gradient is.

    Omega is random at the first step, where the sketch is made three times over; after that it is the last U, which
    follows the largest directions as subspace iteration does. All products of a sketch are taken at one step, of its
    last micro-batch. One that fails is counted in `curv/failed` and made again at the next step; until then the last
    one is used, and before the first the base's steps stay as they are. Products of different batches are of no one
    matrix, and the sketch of them was no use.

    For convex problems, and where few large curvatures hold SGD back. A has to be positive: of a network the Hessian is
    not, the Gauss-Newton matrix is.

    Source: Frangella, Tropp and Udell 2021, arXiv 2110.02820, algorithm 2.1 (sketch); Frangella, Rathore, Zhao and
    Udell 2022, arXiv 2211.08597, algorithm 1 (SketchySGD, with a fresh Omega, rho absolute and a rate of its own).

    Attributes:
        rank: r; as many vectors are remembered.
        every: Steps between two sketches of r products each.
        rho: Damping, relative to the smallest of the sketched curvatures.
        curvature: "gauss-newton", of losses that are known (`losses.registry`), or "hessian", of any that is convex.

    Raises:
        ConfigError: If an argument is out of range; in training if the Hessian has negative eigenvalues.

    Example:
        >>> Nystrom(rank=20).every
        50
    """

    rank: int = 10
    every: int = 50
    rho: float = 0.1
    curvature: str = "gauss-newton"

    owns: ClassVar[Owned] = "nothing"

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_count(name, "rank", self.rank, 1, 10_000)
        check_count(name, "every", self.every, 1, 1_000_000)
        check_range(name, "rho", self.rho, 1e-6, 1e12)
        check_choice(name, "curvature", self.curvature, MATRICES)

    def refuse(self, space: Space, groups: Sequence[dict]) -> str | None:
        """See `VectorMethod.refuse`."""
        if any(adaptive(group) for group in groups):
            return (
                "Nystrom divides the base's step by curvature, and this optimizer divides by its own second moment "
                "already: use torch.optim.SGD, with momentum if you like."
            )
        if self.rank <= space.dimension:
            return None
        return f"Nystrom(rank={self.rank}): there are {space.dimension} numbers to train: rank can be at most that."

    def init(self, space: Space) -> VectorState:
        """See `VectorMethod.init`."""
        numbers = {name: torch.zeros((), dtype=torch.float64) for name in ("lowest", "noise")}
        counts = {name: torch.zeros((), dtype=torch.int64) for name in ("made", "step", "sketches", "failed")}
        values = torch.zeros(self.rank, dtype=torch.float64)
        return VectorState({"U": space.zeros(self.rank)}, {"values": values, **numbers, **counts})

    def probes(self, number: int) -> bool:
        """See `VectorMethod.probes`."""
        return True  # A sketch that failed is made again at the next step.

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """See `VectorMethod.update`."""
        numbers = state.numbers
        numbers["step"].fill_(step.number)
        for _ in range(0 if int(numbers["sketches"]) else FIRST):
            self._sketch(state, step)
        if step.number - int(numbers["made"]) >= self.every:
            self._sketch(state, step)
        sketch = Sketch(state.vectors["U"], numbers["values"])
        rho = self.rho * sketch.least
        return sketch.inverse(step.update, rho, step.space).mul_(rho) if rho else None

    def _sketch(self, state: VectorState, step: Step) -> None:
        """Take all products of a sketch, and put it in the place of the last."""
        U, numbers, space = state.vectors["U"], state.numbers, step.space
        known = [float(value) > 0 for value in numbers["values"]]
        Omega = torch.stack([U[i] if old else space.normal(i, int(numbers["sketches"])) for i, old in enumerate(known)])
        of = step.oracle.gauss_newton if self.curvature == "gauss-newton" else step.oracle.products
        found = nystrom(of(Omega), Omega, space)
        numbers["lowest"].fill_(found.lowest)
        numbers["noise"].fill_(found.noise)
        if found.reason == "indefinite" and self.curvature == "hessian":
            raise ConfigError(
                f"Nystrom(curvature='hessian'): at step {step.number} the Hessian has an eigenvalue below "
                f"{found.lowest:.1e} of its largest in what was sketched, which products that are exact to "
                f"{found.noise:.0e} do not explain: the loss is not convex there, and a sketch is of positive matrices "
                f"alone. Use Nystrom(curvature='gauss-newton'), or SaddleFreeKrylov() where negative curvature matters."
            )
        if not found.ok:
            numbers["failed"] += 1
            return
        U.copy_(found.rows)
        numbers["values"].copy_(found.values)
        numbers["made"].fill_(step.number)
        numbers["sketches"] += 1

    def scalars(self, state: VectorState) -> dict[str, float]:
        """See `VectorMethod.scalars`."""
        numbers = state.numbers
        values = numbers["values"]
        return {
            "curv/lambda_max": float(values[0]),
            "curv/lambda_rank": Sketch(state.vectors["U"], values).least,
            "curv/age": float(numbers["step"] - numbers["made"]),
            "curv/noise": float(numbers["noise"]),
            "curv/failed": float(numbers["failed"]),
        }

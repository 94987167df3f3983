"""Saddle-free Newton in a Krylov subspace: a few directions made of products, all of them anew at every step.

Legend: m directions, n numbers of this rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.contract.vector_method import CURVATURES, Oracle, Owned, Step, VectorState
from lightning_so.errors import check_choice, check_count, check_range
from lightning_so.linalg.frame import beside
from lightning_so.linalg.lanczos import lanczos
from lightning_so.linalg.levenberg import adapted
from lightning_so.linalg.parabola import strides
from lightning_so.linalg.vectors import Space

#: By this factor damping rises after a step that was tried in vain.
RAISE = 4.0
#: Damping below this share of the largest curvature changes nothing.
LEAST = 1e-10


@dataclass(frozen=True)
class SaddleFreeKrylov:
    """Go to the extreme of a quadratic model in a Krylov subspace: down to minima, and away from maxima.

        V = orth[g, H g, ..., H^(m-2) g, last step],   T = V H V' = Q L Q',   c = V g
        d = V'z,   z = -Q (|L| + l)^-1 Q'c
        r = (f(w + d) - f(w)) / (c'z + z'(T + l) z / 2)
        r > 3/4: l <- 2/3 l;   r < 1/4: l <- 3/2 l                              (Levenberg and Marquardt)

    A step that does not lower the loss is not taken: l is raised to 4 times the larger of itself and the smallest |L|,
    and the step tried again, which costs a forward pass and no product. l begins as a share of the largest |L| that is
    seen first, so that the scale of the loss does not matter. m products a step.

    Where the loss at the weights is not finite, or no product is, no step is taken and l stays; of a later product, the
    directions before it are what the step is made of. Both are counted in `curv/failed`.

    For full or large batches, where few but expensive steps are wanted: the ratio is of the batch that V and T are of,
    and on minibatches it says nothing of the others. With accumulated gradients g is that of all micro-batches, T and
    the ratio are of the last. The base is SGD without momentum, whose learning rate does not matter; its schedule does.

    Source: Dauphin et al. 2014, arXiv 1406.2572, algorithm 1 and section 5; the subspace with the last step: Vinyals
    and Povey 2012, arXiv 1111.4259, section 3; damping: Martens 2010, section 4.1.

    Attributes:
        m: Directions, and products a step; fewer where they are dependent.
        damping: l at first, relative to the largest |L| then.
        trials: Steps that are tried before none is taken.
        curvature: "measured", or "constant": one mean stride along all directions, to see what curvature is worth.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> SaddleFreeKrylov(m=10).damping
        0.1
    """

    m: int = 5
    damping: float = 0.1
    trials: int = 6
    curvature: str = "measured"

    owns: ClassVar[Owned] = "step"

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_count(name, "m", self.m, 2, 1000)
        check_range(name, "damping", self.damping, 0.0, 1e12)
        check_count(name, "trials", self.trials, 1, 100)
        check_choice(name, "curvature", self.curvature, CURVATURES)

    def refuse(self, space: Space, groups: Sequence[dict]) -> str | None:
        """See `VectorMethod.refuse`."""
        return None

    def init(self, space: Space) -> VectorState:
        """See `VectorMethod.init`."""
        numbers = {name: torch.zeros((), dtype=torch.float64) for name in ("top", "bottom", "ratio", "damping")}
        counts = {name: torch.zeros((), dtype=torch.int64) for name in ("directions", "rejected", "failed")}
        numbers["damping"].fill_(-1.0)  # Before a curvature is known.
        return VectorState({"last": space.zeros()}, {**numbers, **counts})

    def probes(self, number: int) -> bool:
        """See `VectorMethod.probes`."""
        return True

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """See `VectorMethod.update`."""
        last, numbers = state.vectors["last"], state.numbers
        V, T, whole = subspace(self.m, step.gradient, last, step.oracle, step.space)
        numbers["directions"].fill_(len(V))
        # Of several micro-batches the last one's own gradient is what the ratio is of.
        slopes = step.space.gram(V, torch.stack([step.gradient, step.oracle.here])).cpu()
        if not len(V) or not bool(T.isfinite().all() and slopes.isfinite().all()):
            numbers["failed"] += 1
            return torch.zeros_like(last)
        numbers["failed"] += int(not whole)
        curvatures, Q = torch.linalg.eigh((T + T.mT) / 2)
        numbers["top"].copy_(curvatures[-1])
        numbers["bottom"].copy_(curvatures[0])
        c, own = (Q.mT @ slopes).unbind(1)
        z = self._tried(numbers, step.oracle, V, curvatures, c, own, Q)
        if z is None:
            return torch.zeros_like(last)
        torch.mv(V.mT, (Q @ z).to(V), out=last)
        return step.schedule * last

    def _tried(
        self, numbers: dict[str, Tensor], oracle: Oracle, V: Tensor, L: Tensor, c: Tensor, own: Tensor, Q: Tensor
    ) -> Tensor | None:
        """The step over the eigenvectors of T that lowers the loss, shape (m,), or None; the damping is adapted."""
        largest = float(L.abs().max()) or 1.0
        damping = float(numbers["damping"])
        damping = max(self.damping * largest if damping < 0 else damping, LEAST * largest)
        before = oracle.loss()
        if not math.isfinite(before):  # No step could be compared with it.
            numbers["failed"] += 1
            return None
        for _ in range(self.trials):
            along = strides(L.abs() + damping, float("inf"))
            if self.curvature == "constant":
                along = torch.full_like(along, float(along.mean()))
            z = -along * c
            predicted = float(own @ z + 0.5 * z.square() @ (L + damping))
            change = oracle.loss((Q @ z).to(V) @ V) - before
            if math.isfinite(change) and (predicted > 0 or change < 0):
                break
            numbers["rejected"] += 1
            damping = RAISE * max(damping, float(L.abs().min()))  # Less than the smallest would change nothing.
        else:
            numbers["damping"].fill_(damping)
            return None
        if predicted < 0:
            numbers["ratio"].fill_(change / predicted)
            damping = adapted(damping, change / predicted)
        numbers["damping"].fill_(damping)
        return z

    def scalars(self, state: VectorState) -> dict[str, float]:
        """See `VectorMethod.scalars`."""
        numbers = state.numbers
        names = {"top": "lambda_max", "bottom": "lambda_min", "ratio": "reduction_ratio"}
        same = ("damping", "directions", "rejected", "failed")
        return {f"curv/{names.get(name, name)}": float(numbers[name]) for name in (*names, *same)}


def subspace(m: int, gradient: Tensor, last: Tensor, oracle: Oracle, space: Space) -> tuple[Tensor, Tensor, bool]:
    """An orthonormal frame of the Krylov space of the gradient and of the last step, and the Hessian in it.

    Args:
        m: Directions, those of the Krylov space m - 1.
        gradient: g, shape (n,).
        last: The last step, shape (n,); zero before the first.
        oracle: Gives products, one a direction.
        space: What inner products are.

    Returns:
        V, shape (k, n), k <= m; T, shape (k, k), float64, on the CPU; whether no direction was left out because its
        product was not finite.
    """
    found: list[Tensor] = []

    def product(v: Tensor) -> Tensor:
        found.append(oracle.products(v[None])[0])
        return found[-1]

    krylov = lanczos(product, gradient, min(m - 1, space.dimension), space)
    V = krylov.basis
    del found[len(V) :]  # Where one was not finite.
    v = beside(V, last, space) if len(V) < space.dimension else None
    if v is not None:
        product(v)
        V = torch.cat([V, v[None]])
    # Of products that are not quite symmetric no entry is left out, as the recurrence would.
    return V, space.gram(V, torch.stack(found) if found else V).cpu(), krylov.ok

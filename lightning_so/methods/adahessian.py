"""The second moment of an Adam replaced by curvature: AdaHessian and Sophia.

Both make the base's step anew from its first moment m, with a running mean of what Hutchinson's products give:

    z of random signs,   h = H z,   E[z * h] = diag H,   E[h * h] = the squared norms of the rows of H

The base's own moments stay what they would be: leaving costs nothing, and it goes on as the Adam that it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_so.contract.vector_method import CURVATURES, MATRICES, Owned, Step, VectorState
from lightning_so.errors import check_choice, check_count, check_range
from lightning_so.linalg.vectors import Space

#: What AdaHessian divides by: the norms of the Hessian's rows, or the size of its diagonal.
ESTIMATORS = ("rownorm", "diagonal")
#: Sophia's least denominator: where curvature is not positive, the step is the sign of the moment.
LEAST = 1e-12


@dataclass(frozen=True)
class AdaHessian:
    """Divide an Adam's first moment by curvature, coordinate by coordinate, not by the size of its gradients.

        u = -lr m^ / ((s^)^(power/2) + eps) - lr wd w
        rownorm:    s <- beta s + (1 - beta) a(|h|)^2          h = H z, the mean over ranks and micro-batch
        diagonal:   s <- beta s + (1 - beta) a(z * h),   (s^)^(power/2) = |s^|^power

    m^ is the base's first moment without its bias, s^ is s without its own; lr, eps, wd and the betas of m are the
    base's, by param group. a is the mean over the positions of a convolution's kernel, or nothing. Of products every
    few steps each counts for all of these steps, so that the mean is over as long a time. One that is not finite is
    left out and counted in `curv/failed`; before the first there is nothing to divide by, and no step is taken. The
    public code's denominator is `rownorm`: its square has the mean `sum_j H_ij^2`, not `H_ii^2`; a diagonal that comes
    near zero takes steps without bound, and diverged at three times its best rate where `rownorm` did not. Rates are
    not those of Adam: published are .15 with eps=1e-4, and .3 to 1 were best on a small CNN. A product costs about two
    gradients, at every step; `MatrixFree(product="auto")` or "exact" with ReLU.

    Source: Yao et al. 2021, arXiv 2006.00719, algorithm 1; the row norms: Dauphin et al. 2015, arXiv 1502.04390.

    Attributes:
        estimator: "rownorm" or "diagonal".
        beta: Of the running mean, by step.
        power: 1 divides by the curvature, 0 by one.
        every: Steps between two products.
        average: Whether the positions of a kernel (weights of four dimensions and more) share what they divide by.
        seed: Of the probes; the same on any number of ranks.
        curvature: "measured", or "constant": every denominator is the mean of all, to see what curvature is worth.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> from lightning_so import AdaHessian, MatrixFree
        >>> MatrixFree(AdaHessian(every=4), product="auto").method.power
        1.0
    """

    estimator: str = "rownorm"
    beta: float = 0.999
    power: float = 1.0
    every: int = 1
    average: bool = True
    seed: int = 0
    curvature: str = "measured"

    owns: ClassVar[Owned] = "moments"

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_choice(name, "estimator", self.estimator, ESTIMATORS)
        check_range(name, "beta", self.beta, 0.0, 1.0, closed=False)
        check_range(name, "power", self.power, 0.0, 1.0)
        check_count(name, "every", self.every, 1, 1_000_000)
        check_choice(name, "average", self.average, (True, False))
        check_count(name, "seed", self.seed, 0, 2**31)
        check_choice(name, "curvature", self.curvature, CURVATURES)

    def refuse(self, space: Space, groups: Sequence[dict]) -> str | None:
        """See `VectorMethod.refuse`."""
        cut = [piece.name for piece in space.pieces if piece.cut]
        if self.average and cut:
            return (
                f"AdaHessian(average=True): ranks hold pieces that begin or end inside a kernel of {cut[0]}: use "
                f"average=False, or FSDP2 (ModelParallelStrategy), which cuts between kernels."
            )
        return _refused(type(self).__name__, groups)

    def init(self, space: Space) -> VectorState:
        """See `VectorMethod.init`."""
        return VectorState({"s": space.zeros()}, _counts())

    def probes(self, number: int) -> bool:
        """See `VectorMethod.probes`: at the first step too."""
        return (number - 1) % self.every == 0

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """See `VectorMethod.update`."""
        s, numbers = state.vectors["s"], state.numbers
        numbers["step"].fill_(step.number)
        if self.probes(step.number) and (found := _probed(state, step, self.seed, step.oracle.products)) is not None:
            z, h = found
            d = h.abs_() if self.estimator == "rownorm" else h.mul_(z)
            if self.average:
                step.space.averaged(d)
            s.lerp_(d.square_() if self.estimator == "rownorm" else d, 1 - self.beta**self.every)
        if not numbers["looks"]:
            return torch.zeros_like(step.update)  # At this rate the Adam itself would be far too fast.
        denominator = (s.abs() / (1 - self.beta ** (self.every * int(numbers["looks"])))).pow_(
            self.power / 2 if self.estimator == "rownorm" else self.power
        )
        if self.curvature == "constant":
            ones = torch.ones_like(denominator)
            denominator.copy_(step.space.along(ones[None], denominator[None])[0, 0] / step.space.dimension)
        denominator.add_(step.moments.setting("eps"))
        return _taken(step, step.moments.first().div_(denominator))

    def scalars(self, state: VectorState) -> dict[str, float]:
        """See `VectorMethod.scalars`."""
        return _scalars(state)


@dataclass(frozen=True)
class Sophia:
    """Divide an Adam's first moment by the diagonal of a Hessian, and take no coordinate further than the rate.

        u = -lr clip(m / max(gamma h, 1e-12), -1, 1) - lr wd w
        h <- beta h + (1 - beta) z * H z          every so many steps, from 0; G z with "gauss-newton"

    m is the base's first moment with its bias, lr and wd are the base's. Where curvature is not positive the step is
    `lr sign(m)`, and before the first product too. One that is not finite is left out, and counted in `curv/failed`.
    Recommended are betas of (.96, .99) and a decay of .1 to .2; gamma is right where a tenth to a half of
    the coordinates are not clipped (`curv/clipped` is the share of those that are, at the last product).

    Source: Liu et al. 2023, arXiv 2305.14342, algorithm 3, with a first product at the first step; G by a product with
    it where the paper draws labels.

    Attributes:
        gamma: The larger, the more coordinates are clipped less.
        beta: Of the running mean, by product.
        every: Steps between two products.
        curvature: "hessian", or "gauss-newton" for losses that `losses` knows: never negative.
        seed: Of the probes; the same on any number of ranks.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> Sophia(curvature="gauss-newton").every
        10
    """

    gamma: float = 0.01
    beta: float = 0.99
    every: int = 10
    curvature: str = "hessian"
    seed: int = 0

    owns: ClassVar[Owned] = "moments"

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        check_range(name, "gamma", self.gamma, 0.0, 1e12)
        check_range(name, "beta", self.beta, 0.0, 1.0, closed=False)
        check_count(name, "every", self.every, 1, 1_000_000)
        check_choice(name, "curvature", self.curvature, MATRICES)
        check_count(name, "seed", self.seed, 0, 2**31)

    def refuse(self, space: Space, groups: Sequence[dict]) -> str | None:
        """See `VectorMethod.refuse`."""
        return _refused(type(self).__name__, groups)

    def init(self, space: Space) -> VectorState:
        """See `VectorMethod.init`."""
        return VectorState({"h": space.zeros()}, {**_counts(), "clipped": torch.zeros((), dtype=torch.float64)})

    def probes(self, number: int) -> bool:
        """See `VectorMethod.probes`: at the first step too."""
        return (number - 1) % self.every == 0

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """See `VectorMethod.update`."""
        h, numbers, looks = state.vectors["h"], state.numbers, self.probes(step.number)
        numbers["step"].fill_(step.number)
        products = step.oracle.products if self.curvature == "hessian" else step.oracle.gauss_newton
        if looks and (found := _probed(state, step, self.seed, products)) is not None:
            z, product = found
            h.lerp_(product.mul_(z), 1 - self.beta)
        ratio = step.moments.first(corrected=False).div_((self.gamma * h).clamp_(min=LEAST))
        if looks:
            beyond = (ratio.abs() > 1).to(ratio)[None]
            numbers["clipped"].copy_(step.space.along(beyond, beyond)[0, 0] / step.space.dimension)
        return _taken(step, ratio.clamp_(-1.0, 1.0))

    def scalars(self, state: VectorState) -> dict[str, float]:
        """See `VectorMethod.scalars`."""
        return {**_scalars(state), "curv/clipped": float(state.numbers["clipped"])}


# ------------------------------------------------------------------ what both do
def _refused(name: str, groups: Sequence[dict]) -> str | None:
    """Why a base is no Adam whose second moment can be replaced."""
    for group in groups:
        if not {"betas", "eps", "amsgrad", "weight_decay"} <= group.keys() or "momentum_decay" in group:
            return (
                f"{name} replaces the second moment of an Adam, and this optimizer is none: use torch.optim.AdamW or "
                f"Adam; behind SGD go FewDirections(), AutoStep() and QuadraticModel()."
            )
        for flag in ("amsgrad", "maximize"):
            if group.get(flag):
                return f"{name}: the optimizer has {flag}=True, which {name} does not know: leave it out."
    return None


def _counts() -> dict[str, Tensor]:
    """Finite products, others, this step and that of the last product."""
    return {name: torch.zeros((), dtype=torch.int64) for name in ("looks", "failed", "step", "measured")}


def _probed(
    state: VectorState, step: Step, seed: int, products: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Random signs and their product, if it is finite."""
    z = step.space.rademacher(seed, step.number)
    h = products(z[None])[0]
    if not float(step.space.along(h[None], h[None])) < float("inf"):
        state.numbers["failed"] += 1
        return None
    state.numbers["looks"] += 1
    state.numbers["measured"].fill_(step.number)
    return z, h


def _taken(step: Step, direction: Tensor) -> Tensor:
    """`-lr direction - lr wd w`, in the place of the base's update; the direction is spent."""
    rate, decay = step.moments.setting("lr"), step.moments.decay()
    taken = torch.mul(step.weights, decay, out=step.update)
    return taken.add_(direction.mul_(rate)).neg_()


def _scalars(state: VectorState) -> dict[str, float]:
    numbers = state.numbers
    age = float(numbers["step"] - numbers["measured"]) if numbers["looks"] else 0.0
    return {"curv/age": age, "curv/failed": float(numbers["failed"])}

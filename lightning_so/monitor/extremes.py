"""What a few steps of Lanczos say of a loss: its extreme curvatures, and how far an extremum is."""

from dataclasses import dataclass

from torch import Tensor

from lightning_so.linalg.lanczos import Product, lanczos
from lightning_so.linalg.vectors import Space


@dataclass(frozen=True)
class Extremes:
    """The curvature of a loss at some weights.

    Attributes:
        top: The largest eigenvalue of the Hessian that was found.
        bottom: The smallest.
        errors: Bounds of the distances of the two to eigenvalues.
        negative: The share of a random vector in directions of negative curvature.
        distance: `|<g, v>| / |top|`: how far the model's extremum is along the top direction v.
        products: Products that it took.
        ok: Whether all of them were finite.
    """

    top: float
    bottom: float
    errors: tuple[float, float]
    negative: float
    distance: float
    products: int
    ok: bool

    def scalars(self, rate: float) -> dict[str, float]:
        """What is logged, given the learning rate."""
        return {
            "curv/lambda_max": self.top,
            "curv/lambda_min": self.bottom,
            "curv/neg_mass": self.negative,
            "curv/lr_x_lambda": rate * self.top,
            "curv/distance": self.distance,
        }


def extremes(product: Product, gradient: Tensor, space: Space, *, steps: int, seed: int) -> Extremes | None:
    """Look at a loss.

    Args:
        product: `v -> H v`.
        gradient: g at the weights.
        space: What vectors are.
        steps: Products; of fewer numbers than that, one a number.
        seed: Of the start, which is the same for every number of ranks.

    Returns:
        What is seen; None if the first product is not finite.
    """
    found = lanczos(product, space.normal(seed), min(steps, space.dimension), space)
    if not len(found.diagonal):
        return None
    values, weights, errors = found.ritz()
    top, bottom = float(values[-1]), float(values[0])
    along = space.dot(gradient, found.vector(-1))
    return Extremes(
        top=top,
        bottom=bottom,
        errors=(float(errors[-1]), float(errors[0])),
        negative=float(weights[values < 0].sum()),
        distance=abs(along) / abs(top) if top else float("inf"),
        products=len(found.diagonal) + (not found.ok),
        ok=found.ok,
    )

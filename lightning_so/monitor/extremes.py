"""What a few steps of Lanczos say of a loss: its extreme curvatures, trace and density, and how far an extremum is."""

from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from lightning_so.linalg.lanczos import Product, Tridiagonal, lanczos
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
        trace: An estimate of the trace: `N <v, A v>` of random directions v, the mean over probes.
        values: The points of the spectral density by stochastic Lanczos quadrature, rising.
        weights: Their weights, which sum to one.
        tops: The largest eigenvalues that one probe has found, falling.
    """

    top: float
    bottom: float
    errors: tuple[float, float]
    negative: float
    distance: float
    products: int
    ok: bool
    trace: float
    values: tuple[float, ...]
    weights: tuple[float, ...]
    tops: tuple[float, ...]

    def scalars(self, rate: float) -> dict[str, float]:
        """What is logged, given the learning rate; further eigenvalues as `curv/lambda_2`, ..."""
        return {
            "curv/lambda_max": self.top,
            "curv/lambda_min": self.bottom,
            "curv/neg_mass": self.negative,
            "curv/lr_x_lambda": rate * self.top,
            "curv/distance": self.distance,
            "curv/trace": self.trace,
            **{f"curv/lambda_{number}": value for number, value in enumerate(self.tops[1:], 2)},
        }


def extremes(
    product: Product, gradient: Tensor, space: Space, *, steps: int, seed: int, top: int = 1, probes: int = 1
) -> Extremes | None:
    """Look at a loss.

    Args:
        product: `v -> H v`.
        gradient: g at the weights.
        space: What vectors are.
        steps: Products a probe; of fewer numbers than that, one a number.
        seed: Of the starts, which are the same for every number of ranks.
        top: How many of the largest eigenvalues.
        probes: Random starts, whose traces and densities are averaged.

    Returns:
        What is seen; None if no first product was finite.
    """
    starts = (space.normal(seed, probe) for probe in range(probes))
    tried = [lanczos(product, start, min(steps, space.dimension), space) for start in starts]
    found = [one for one in tried if len(one.diagonal)]
    if not found:
        return None
    ritz = [one.ritz() for one in found]
    highest = max(range(len(found)), key=lambda probe: float(ritz[probe][0][-1]))
    lowest = min(range(len(found)), key=lambda probe: float(ritz[probe][0][0]))
    values, _, errors = ritz[highest]
    largest, bottom = float(values[-1]), float(ritz[lowest][0][0])
    along = space.dot(gradient, found[highest].vector(-1))
    points = sorted((float(x), float(w) / len(found)) for at, share, _ in ritz for x, w in zip(at, share, strict=True))
    return Extremes(
        top=largest,
        bottom=bottom,
        errors=(float(errors[-1]), float(ritz[lowest][2][0])),
        negative=sum(weight for value, weight in points if value < 0),
        distance=abs(along) / abs(largest) if largest else float("inf"),
        products=sum(_products(one) for one in tried),
        ok=all(one.ok for one in tried),
        trace=space.dimension * fmean(float(one.diagonal[0]) for one in found),
        values=tuple(value for value, _ in points),
        weights=tuple(weight for _, weight in points),
        tops=tuple(float(value) for value in values.flip(0)[:top]),
    )


def _products(found: Tridiagonal) -> int:
    return len(found.diagonal) + (not found.ok)

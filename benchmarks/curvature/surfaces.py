"""Small problems with a known shape, in float64: valleys, saddles, noise; what is minimised, from where, how far."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]


class Surface(nn.Module):
    """A loss of its parameters; where nothing is sampled, batches are empty."""

    def draw(self, generator: torch.Generator) -> Batch:
        """The next batch."""
        return ()

    def forward(self, *batch: Tensor) -> Tensor:
        """The loss of a batch."""
        raise NotImplementedError

    @torch.no_grad()
    def value(self) -> float:
        """What the target is of: the loss, of everything."""
        return float(self())


@dataclass(frozen=True)
class Landscape:
    """One problem.

    Attributes:
        make: A surface of a seed, at its start.
        target: Where it ends.
        budget: Most gradient evaluations of a run.
        rates: The smallest rate of the grid, by base.
    """

    make: Callable[[int], Surface]
    target: float
    budget: int
    rates: dict[str, float]


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers of a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, size: int) -> Tensor:
    """A random orthogonal matrix: nothing is along the axes, which a diagonal method would see."""
    return torch.linalg.qr(normal(1000 + seed, size, size)).Q


class Rosenbrock(Surface):
    """`(1 - x)^2 + 100 (y - x^2)^2` from about (-1.2, 1): a curved valley, condition 2500 at its end."""

    def __init__(self, seed: int) -> None:
        """Start somewhere near."""
        super().__init__()
        self.w = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64) + 0.05 * normal(seed, 2))

    def forward(self, *batch: Tensor) -> Tensor:
        """See `Surface`."""
        x, y = self.w.unbind()
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2


class Monkey(Surface):
    """`x^3 - 3 x y^2 + (x^2 + y^2)^2 / 4`: three ways down from an origin without curvature; -6.75 at their ends."""

    def __init__(self, seed: int, radius: float = 1e-2) -> None:
        """Start so far from the origin."""
        super().__init__()
        start = normal(seed, 2)
        self.w = nn.Parameter(radius * start / start.norm().clamp(min=1e-300))

    def forward(self, *batch: Tensor) -> Tensor:
        """See `Surface`."""
        x, y = self.w.unbind()
        return x**3 - 3 * x * y**2 + (x**2 + y**2) ** 2 / 4


class Saddle(Surface):
    """Five ways down among 100 directions, a hundred times apart in strength, each to a minimum one deep: -5 in all.

    `sum l z^2 / 2`, z a rotation of w: 95 l from 0.01 to 1, five from -0.01 to -1, those with walls `l^2 z^4 / 16`.
    """

    def __init__(self, seed: int) -> None:
        """Start 1e-6 from the saddle."""
        super().__init__()
        down = -torch.logspace(-2, 0, 5, dtype=torch.float64)
        self.register_buffer("l", torch.cat([down, torch.logspace(-2, 0, 95, dtype=torch.float64)]))
        self.register_buffer("walls", torch.cat([down**2 / 16, torch.zeros(95, dtype=torch.float64)]))
        self.register_buffer("Q", rotation(seed, 100))
        start = normal(seed, 100)
        self.w = nn.Parameter(1e-6 * start / start.norm())

    def forward(self, *batch: Tensor) -> Tensor:
        """See `Surface`."""
        squares = (self.Q @ self.w) ** 2
        return self.l @ squares / 2 + self.walls @ squares**2


class LeastSquares(Surface):
    """Least squares of 100 numbers on 2,000 rows, condition 1,000, 32 rows a batch; the target is of the excess of all.

    The loss of a batch is `|A w - y|^2 / 2 n`, with noise in y: at the optimum gradients of batches are not zero.
    """

    def __init__(self, seed: int) -> None:
        """Start at zero."""
        super().__init__()
        scales = torch.logspace(-1.5, 0, 100, dtype=torch.float64)
        A = normal(seed, 2000, 100) * scales @ rotation(seed, 100)
        y = A @ (rotation(seed, 100).mT @ (normal(seed + 100, 100) / scales) / 10) + 0.1 * normal(seed + 200, 2000)
        self.register_buffer("A", A)
        self.register_buffer("y", y)
        self.register_buffer("H", A.mT @ A / 2000)
        self.register_buffer("best", torch.linalg.solve(A.mT @ A, A.mT @ y))
        self.w = nn.Parameter(torch.zeros(100, dtype=torch.float64))

    def draw(self, generator: torch.Generator) -> Batch:
        """Rows."""
        rows = torch.randint(0, 2000, (32,), generator=generator)
        return self.A[rows], self.y[rows]

    def forward(self, *batch: Tensor) -> Tensor:
        """See `Surface`."""
        A, y = batch
        return (A @ self.w - y).square().mean() / 2

    @torch.no_grad()
    def value(self) -> float:
        """The loss of all rows above its least."""
        apart = self.w - self.best
        return float(apart @ (self.H @ apart)) / 2


class DeepLinear(Surface):
    """`|W_6 ... W_1 - T|^2 / |T|^2`, 8 x 8: its five singular values are learnt one by one, from saddle to saddle."""

    def __init__(self, seed: int) -> None:
        """Start from small weights."""
        super().__init__()
        U, V = rotation(seed, 8), rotation(seed + 50, 8)
        self.register_buffer("T", U * torch.tensor([2, 1.5, 1.2, 1, 0.8, 0, 0, 0], dtype=torch.float64) @ V)
        self.layers = nn.ParameterList(0.6 * normal(10 * seed + layer, 8, 8) / 8**0.5 for layer in range(6))

    def forward(self, *batch: Tensor) -> Tensor:
        """See `Surface`."""
        product = self.layers[0]
        for layer in list(self.layers)[1:]:
            product = layer @ product
        return (product - self.T).square().sum() / self.T.square().sum()


LANDSCAPES = {
    "saddle of 100": Landscape(Saddle, -4.9, 600, {"SGD": 2e-2, "Adam": 3.2e-2}),
    "monkey saddle": Landscape(Monkey, -6.7, 200, {"SGD": 2e-3, "Adam": 1e-2}),
    "deep linear": Landscape(DeepLinear, 1e-3, 500, {"SGD": 4e-3, "Adam": 1.6e-3}),
    "noisy least squares": Landscape(LeastSquares, 5e-2, 500, {"SGD": 1e-2, "Adam": 2e-3}),
    "Rosenbrock": Landscape(Rosenbrock, 1e-3, 500, {"SGD": 8e-5, "Adam": 3.2e-2}),
}

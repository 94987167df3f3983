"""Physics-informed networks by Levenberg and Marquardt: two equations, full batch, from the command line.

    python -m examples.pinn fit --config configs/levenberg_poisson.yaml
    python -m examples.pinn fit --config configs/levenberg_burgers.yaml

`--trainer.callbacks null --model.optimizer adamw --model.lr 3e-3` is the training without it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

#: Points inside of which there is one on the boundary.
INSIDE = 4
#: Of Burgers' equation: a front that uniform points resolve, and the thin one of the literature, which needs points of
#: its own (between 1,600 random ones it falls: 20 % were left).
VISCOSITY, THIN = 0.05 / math.pi, 0.01 / math.pi
#: How far such points are from the front, x = 1/2, as a standard deviation.
NEAR = 0.02


@dataclass(frozen=True)
class Equation:
    """A partial differential equation on the unit square, whose solution is known.

    Attributes:
        residual: Of a network at points inside, shape (B, 2) -> (B, 1); zero for the solution.
        solution: At points, shape (B, 2) -> (B, 1).
        edges: The edges on which the solution is given: 0 and 1 are x = 0 and 1, 2 and 3 are y = 0 and 1.
    """

    residual: Callable[[nn.Module, Tensor], Tensor]
    solution: Callable[[Tensor], Tensor]
    edges: tuple[int, ...]


def derivatives(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Value, gradient and pure second derivatives at points, shapes (B, 1), (B, 2) and twice (B, 1)."""
    x = x.detach().requires_grad_()
    u = net(x)
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    second = [torch.autograd.grad(du[:, i].sum(), x, create_graph=True)[0][:, i : i + 1] for i in range(2)]
    return u, du, second


def _poisson(net: nn.Module, x: Tensor) -> Tensor:
    """`u_xx + u_yy = -2 pi^2 sin(pi x) sin(pi y)`."""
    _, _, second = derivatives(net, x)
    return second[0] + second[1] + 2 * math.pi**2 * _sines(x)


def _sines(x: Tensor) -> Tensor:
    return torch.sin(math.pi * x[:, :1]) * torch.sin(math.pi * x[:, 1:])


def _burgers(net: nn.Module, x: Tensor, viscosity: float = VISCOSITY) -> Tensor:
    """`u_t + u u_s = nu u_ss`, with s = 2 x - 1 from -1 to 1 and t = y."""
    u, du, second = derivatives(net, x)
    return du[:, 1:] + u * du[:, :1] / 2 - viscosity * second[0] / 4


def _cole_hopf(x: Tensor, viscosity: float = VISCOSITY) -> Tensor:
    """The solution that begins as `-sin(pi s)` (Cole 1951, Hopf 1950), by Gauss-Hermite quadrature."""
    s, t = (2 * x[:, :1] - 1).double(), x[:, 1:].double()
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite.hermgauss(200))
    moved = s - nodes * (4 * viscosity * t).sqrt()
    logs = -torch.cos(math.pi * moved) / (2 * math.pi * viscosity)
    shares = weights * torch.exp(logs - logs.max(1, keepdim=True).values)
    return -((torch.sin(math.pi * moved) * shares).sum(1, keepdim=True) / shares.sum(1, keepdim=True)).to(x)


EQUATIONS = {
    "poisson": Equation(_poisson, _sines, (0, 1, 2, 3)),
    "burgers": Equation(_burgers, _cole_hopf, (0, 1, 2, 2)),
    "burgers_thin": Equation(partial(_burgers, viscosity=THIN), partial(_cole_hopf, viscosity=THIN), (0, 1, 2, 2)),
}


class PINN(pl.LightningModule):
    """Tanh layers whose loss is the square of an equation's residual; nothing in it knows of second-order methods.

    Args:
        equation: "poisson", "burgers" or "burgers_thin".
        width: Of the hidden layers.
        depth: How many there are.
        boundary: Weight of the boundary's squared errors.
        optimizer: "sgd" or "adamw".
        lr: Its learning rate, which does not matter to Levenberg and Marquardt.
    """

    def __init__(
        self,
        equation: str = "poisson",
        width: int = 32,
        depth: int = 3,
        boundary: float = 1.0,
        optimizer: str = "sgd",
        lr: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.equation = EQUATIONS[equation]
        widths = [2, *[width] * depth, 1]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean square of the residual inside, and of the error on the boundary."""
        inside, edge = batch[0].flatten(0, 1), batch[1]
        error = self.net(edge) - self.equation.solution(edge)
        return self.equation.residual(self.net, inside).square().mean() + self.hparams.boundary * error.square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Distance to the solution over the solution's length, in percent."""
        truth = self.equation.solution(batch[0])
        self.log("relative_error", 100 * (self.net(batch[0]) - truth).norm() / truth.norm(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The base."""
        kind = torch.optim.SGD if self.hparams.optimizer == "sgd" else torch.optim.AdamW
        return kind(self.parameters(), lr=self.hparams.lr, weight_decay=0.0)


class Points(pl.LightningDataModule):
    """All points in one batch: `4 * boundary` inside, drawn at random, and as many as said on the boundary.

    Args:
        boundary: Points on the boundary.
        equation: "poisson", "burgers" or "burgers_thin".
        seed: Of the points.
        double: Whether they are in float64.
        front: Share of the points inside that are drawn around x = 1/2, where the solution of Burgers has its front.
    """

    def __init__(
        self,
        boundary: int = 128,
        equation: str = "poisson",
        seed: int = 0,
        double: bool = False,
        front: float = 0.0,
    ) -> None:
        super().__init__()
        self.front = front
        self.boundary, self.edges, self.seed = boundary, EQUATIONS[equation].edges, seed
        self.dtype = torch.float64 if double else torch.float32

    def setup(self, stage: str) -> None:
        """Draw the points, and lay a grid for the error."""
        generator = torch.Generator().manual_seed(self.seed)
        inside = torch.rand(self.boundary, INSIDE, 2, generator=generator, dtype=torch.float64)
        along = torch.rand(self.boundary, generator=generator, dtype=torch.float64)
        edge = torch.tensor(self.edges)[torch.arange(self.boundary) % len(self.edges)]
        fixed = (edge % 2).double()
        points = torch.stack([torch.where(edge < 2, fixed, along), torch.where(edge < 2, along, fixed)], 1)
        near = round(self.front * self.boundary)
        x = 0.5 + NEAR * torch.randn(near, INSIDE, generator=generator, dtype=torch.float64)
        inside[:near, :, 0] = x.clamp(0, 1)
        line = torch.linspace(0, 1, 101, dtype=torch.float64)
        grid = torch.cartesian_prod(line, line)
        self.train = TensorDataset(inside.to(self.dtype), points.to(self.dtype))
        self.held = TensorDataset(grid.to(self.dtype))

    def train_dataloader(self) -> DataLoader:
        """One batch."""
        return DataLoader(self.train, self.boundary)

    def val_dataloader(self) -> DataLoader:
        """One batch."""
        return DataLoader(self.held, len(self.held))


def main() -> None:
    """Parse the command line and the YAML, then run the chosen subcommand."""
    LightningCLI(PINN, Points, seed_everything_default=0, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()

"""How sure a regression is: a last-layer Laplace approximation from the factors that training has left behind.

    python -m examples.laplace
    python -m examples.gallery.laplace     # the picture

K-FAC has averaged A = E[a a'] and G = E[g g'] of the last layer while the network trained: no pass over the data is
needed any more. With N samples, the prior N(0, 1/d) and the noise s^2 (the loss of the last epoch), the posterior of
the last layer is normal with covariance (N F + d I)^-1, F = G x A / (2 s^2) in nats (MacKay 1992; last layer alone:
Kristiadi, Hein and Hennig 2020, arXiv 2002.10118). A prediction from features a has the variance

    s^2 + sum_i (V' a)_i^2 / (N f_i + d),    F = V diag(f) V'

and d is that of the largest evidence, d = sum_i [N f_i / (N f_i + d)] / |w|^2. The printed table says what that does on
held-out patients of scikit-learn's diabetes data: without it a network that was trained for long is too sure.
"""

import argparse
import math
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_so import KFAC, LayerCurvature, SecondOrder, curvature

TRAIN = 221
#: Half of a normal distribution's central 90 %, in standard deviations.
NINETY = 1.645


def patients() -> TensorDataset:
    """442 patients: ten measurements each, and the progression of their disease; all standardised."""
    x, y = (torch.tensor(values, dtype=torch.float32) for values in load_diabetes(return_X_y=True))
    return TensorDataset((x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std())


class Regression(pl.LightningModule):
    """Two hidden layers and a linear head; nothing in it knows of second-order methods."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh())
        self.head = nn.Linear(50, 1)
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Predicted progression."""
        return self.head(self.body(x))[:, 0]

    def on_train_epoch_start(self) -> None:
        """Keep the losses of the newest epoch alone."""
        self.losses = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean squared error."""
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class LastLayer:
    """The posterior of a linear layer with one output.

    Attributes:
        noise: s^2.
        prior: d.
    """

    def __init__(self, layer: LayerCurvature, weight: Tensor, noise: float, samples: int) -> None:
        """Find d.

        Args:
            layer: The layer's curvature, of the mean squared error.
            weight: Its weights, the bias last.
            noise: s^2.
            samples: N.
        """
        F = layer.inputs[0].double() * float(layer.outputs[0]) / (2 * noise)
        values, self.basis = torch.linalg.eigh(F)
        self.noise, self.curvature, self.prior = noise, samples * values.clamp_min(0), 1.0
        for _ in range(100):
            self.prior = float((self.curvature / (self.curvature + self.prior)).sum()) / float(weight.square().sum())

    def variance(self, features: Tensor) -> Tensor:
        """Variance of the predictions from features (B, I), shape (B,)."""
        a = torch.cat([features, features.new_ones(len(features), 1)], 1).double()
        return self.noise + ((a @ self.basis).square() / (self.curvature + self.prior)).sum(1)


class HeldOut(NamedTuple):
    """Of the held-out patients.

    Attributes:
        errors: Squared errors of the predictions, (B,).
        sure: Their variances, shape (B,).
        noise: The part of these that is noise.
        prior: d.
    """

    errors: Tensor
    sure: Tensor
    noise: float
    prior: float

    def likelihood(self, variance: Tensor) -> float:
        """Negative log-likelihood under variances, mean over patients, in nats."""
        return float((0.5 * (2 * math.pi * variance).log() + self.errors / (2 * variance)).mean())

    def inside(self, variance: Tensor, deviations: float = NINETY) -> float:
        """Share of the patients within so many standard deviations."""
        return float((self.errors.sqrt() < deviations * variance.sqrt()).double().mean())

    def alone(self) -> Tensor:
        """The variances of the noise alone."""
        return torch.full_like(self.sure, self.noise)


def trained(epochs: int) -> HeldOut:
    """Train behind K-FAC for so many epochs, and look at the other patients."""
    pl.seed_everything(0, verbose=False)
    train, held = random_split(patients(), [TRAIN, len(patients()) - TRAIN])
    callback, model = SecondOrder(KFAC(fisher="exact"), print_plan=False), Regression()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[callback], accelerator="cpu", devices=1, **quiet)
    trainer.fit(model, DataLoader(train, 32, shuffle=True))

    layer, head = curvature(callback.engines[0])["head.weight"], model.head
    weight = torch.cat([head.weight.detach()[0], head.bias.detach()])
    posterior = LastLayer(layer, weight, float(torch.stack(model.losses).mean()), TRAIN)
    with torch.no_grad():
        x, y = next(iter(DataLoader(held, len(held))))
        errors, sure = (model(x) - y).double().square(), posterior.variance(model.body(x))
    return HeldOut(errors, sure, posterior.noise, posterior.prior)


def main() -> None:
    """Train for both numbers of epochs, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[40, 150])
    args = parser.parse_args()

    torch.set_num_threads(1)
    lines = ["epochs   prior   negative log-likelihood: noise alone, Laplace   inside the 90 % interval: both"]
    for epochs in args.epochs:
        held = trained(epochs)
        both = (held.alone(), held.sure)
        line = [f"{epochs:>6} {held.prior:>7.1f}  ", *(f"{held.likelihood(v):>13.3f}" for v in both)]
        lines.append("".join([*line, *(f"{held.inside(v):>18.2f}" for v in both)]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()

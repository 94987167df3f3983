"""Off a saddle: a linear autoencoder of digits that starts next to the one at zero.

    python -m examples.gallery.saddle

At zero weights the gradient vanishes, and the Hessian has negative eigenvalues. Plain SGD crawls away from there;
SaddleEscape sees the plateau, finds the most negative curvature by Lanczos, and moves along it. Adam, whose steps do
not hang on the gradient's length, needs no help here.
"""

import pytorch_lightning as pl
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

from examples.autoencoder import Digits
from examples.gallery.compare import QUIET, arguments, finish
from lightning_so import SaddleEscape

#: Standard deviation of the weights at the start.
NEAR = 1e-5


class Pair(pl.LightningModule):
    """64 pixels to 30 numbers and back, without a bias; losses are kept as they come."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        super().__init__()
        self.model, self.optimizer = model, optimizer
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Squared error of an image."""
        loss = (self.model(batch[0]) - batch[0]).square().sum(1).mean()
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one given."""
        return self.optimizer


def train(name: str, steps: int, escape: SaddleEscape | None) -> list[float]:
    """Losses of one run.

    Args:
        name: "SGD" or "Adam".
        steps: How many.
        escape: What watches it.
    """
    pl.seed_everything(0, verbose=False)
    model = nn.Sequential(nn.Linear(64, 30, bias=False), nn.Linear(30, 64, bias=False))
    for weight in model.parameters():
        nn.init.normal_(weight, std=NEAR)
    rates = {"SGD": lambda: torch.optim.SGD(model.parameters(), 2e-3, momentum=0.9)}
    rates["Adam"] = lambda: torch.optim.Adam(model.parameters(), 2e-3)
    module = Pair(rates[name](), model)
    callbacks = [] if escape is None else [escape]
    pl.Trainer(max_steps=steps, limit_val_batches=0, callbacks=callbacks, **QUIET).fit(module, Digits())
    return module.losses


def main() -> None:
    """Train, draw."""
    args = arguments(__doc__, "saddle", steps=300, every=10)
    escape = SaddleEscape(every=args.every, verbose=False)
    runs = {"SGD": train("SGD", args.steps, None), "SGD + SaddleEscape": train("SGD", args.steps, escape)}
    runs["Adam"] = train("Adam", args.steps, None)
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, losses in runs.items():
        axis.plot(losses, label=name)
        half = next((step for step, loss in enumerate(losses) if loss < losses[0] / 2), None)
        print(f"{name}: half of the loss after {half} steps, {losses[-1]:.2f} at the end")
    print(f"SaddleEscape moved {escape.escapes} times, for {escape.evaluations} gradients")
    axis.set(xlabel="steps", ylabel="squared error of an image", yscale="log")
    finish(figure, axis, args.out)


if __name__ == "__main__":
    main()

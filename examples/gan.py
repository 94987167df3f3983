"""A small GAN on scikit-learn's digits: manual optimization, two Adams, and one SecondOrder for both.

    python -m examples.gan --method soap     # or muon

The callback gives every optimizer an engine of its own, in the order of `configure_optimizers`, with its own plan,
schedule and report. Nothing else changes: `toggle_optimizer`, `manual_backward` and `step` are those of any GAN.
"""

import argparse
from collections.abc import Callable

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from examples.image_classifier import METHODS, digits
from lightning_so import SecondOrder

LATENT = 32
SHADES = " .:-=+*#%@"


class GAN(pl.LightningModule):
    """A generator and a discriminator of three linear layers each, with the non-saturating loss.

    Args:
        lr: Learning rate of both optimizers.
    """

    def __init__(self, lr: float = 5e-4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            *(nn.Linear(LATENT, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid()),
            nn.Unflatten(1, (1, 8, 8)),
        )
        self.discriminator = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)),
        )

    def forward(self, count: int) -> Tensor:
        """Generated images, [count, 1, 8, 8]."""
        return self.generator(torch.randn(count, LATENT, device=self.device))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One step of the discriminator, then one of the generator."""
        real, _ = batch
        of_discriminator, of_generator = self.optimizers()
        self.advance(of_discriminator, "d_loss", lambda: self.discriminator_loss(real))
        self.advance(of_generator, "g_loss", lambda: self.generator_loss(len(real)))

    def advance(self, optimizer: LightningOptimizer, name: str, loss_of: Callable[[], Tensor]) -> None:
        """One step of one player; the other one's parameters are held fixed and get no gradient."""
        self.toggle_optimizer(optimizer)
        loss = loss_of()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        self.log(name, loss, on_step=False, on_epoch=True, prog_bar=True)

    def discriminator_loss(self, real: Tensor) -> Tensor:
        """Mean cross-entropy of telling real from generated; log 2 = 0.693 is a guess."""
        for_real, for_fake = self.discriminator(real), self.discriminator(self(len(real)))
        return (F.softplus(-for_real).mean() + F.softplus(for_fake).mean()) / 2

    def generator_loss(self, count: int) -> Tensor:
        """How surprised the discriminator would be if the generated images were real."""
        return F.softplus(-self.discriminator(self(count))).mean()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam a player, with the small first beta that is usual here."""
        return [
            torch.optim.Adam(player.parameters(), lr=self.hparams.lr, betas=(0.5, 0.99))
            for player in (self.discriminator, self.generator)
        ]


def drawn(images: Tensor) -> str:
    """Images side by side, in characters, two to a pixel."""
    levels = (images.squeeze(1).clamp(0, 1) * (len(SHADES) - 1)).round().long()
    return "\n".join("  ".join("".join(SHADES[v] * 2 for v in row) for row in rows) for rows in zip(*levels.tolist()))


def main() -> None:
    """Train for `--epochs` epochs; print the losses, what each engine did, and six generated digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="soap")
    parser.add_argument("--epochs", type=int, default=40, help="of 28 steps of each player")
    args = parser.parse_args()

    torch.set_num_threads(1)  # the layers are too small to be shared by threads
    pl.seed_everything(0)
    second_order = SecondOrder(METHODS[args.method]())
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        callbacks=[second_order],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
    )
    model = GAN()
    trainer.fit(model, DataLoader(digits(), 64, shuffle=True, drop_last=True))

    for name, player, engine in zip("dg", ("discriminator", "generator"), second_order.engines, strict=True):
        report = engine.report
        print(f"{player:>13}: loss {trainer.callback_metrics[f'{name}_loss']:.3f}, {report.step} steps, ", end="")
        print(f"{report.rotated} blocks rotated, {report.bent} bent, {report.solves} solves")
    with torch.no_grad():
        print(drawn(model(6)))


if __name__ == "__main__":
    main()

"""The deep autoencoder of Hinton and Salakhutdinov (2006) on scikit-learn's digits, from the command line.

    python -m examples.autoencoder fit --config configs/kfac_autoencoder.yaml                                # on AdamW
    python -m examples.autoencoder fit --config configs/kfac_autoencoder.yaml --model.base sgd --model.lr 0.01  # on SGD

Under AdamW K-FAC turns the updates at AdamW's own length and learning rate; under SGD it preconditions the gradients,
at a rate that is right for SGD. `--trainer.callbacks null` is the training without it.
"""

from itertools import pairwise

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

TRAIN = 1500


class Autoencoder(pl.LightningModule):
    """Eight tanh layers with a linear code of 30; nothing in it knows of second-order methods.

    Args:
        base: The optimizer, "adamw" or "sgd" (with momentum).
        lr: Its peak learning rate.
        total_steps: Steps over which the cosine falls to 0.
    """

    def __init__(self, base: str = "adamw", lr: float = 5e-3, total_steps: int = 200) -> None:
        super().__init__()
        self.save_hyperparameters()
        widths = [64, 500, 250, 125, 30, 125, 250, 500, 64]
        layers: list[nn.Module] = []
        for number, (n_in, n_out) in enumerate(pairwise(widths)):
            layers += [nn.Linear(n_in, n_out)] if number in (3, 7) else [nn.Linear(n_in, n_out), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Squared error summed over an image's pixels, averaged over images."""
        return (self.model(batch[0]) - batch[0]).square().sum(1).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of one training batch."""
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Loss of the held-out images."""
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> dict:
        """The base with a cosine, whatever the method."""
        hp = self.hparams
        if hp.base == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(self.parameters(), lr=hp.lr, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), lr=hp.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, hp.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Digits(pl.LightningDataModule):
    """1,500 digits of 8x8 pixels for training, the other 297 for validation."""

    def __init__(self, batch_size: int = 256) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Read the images, which ship with scikit-learn."""
        images = torch.tensor(load_digits().data / 16, dtype=torch.float32)
        self.train, self.held = TensorDataset(images[:TRAIN]), TensorDataset(images[TRAIN:])

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches, all of one size."""
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """One batch."""
        return DataLoader(self.held, len(self.held))


def main() -> None:
    """Parse the command line and the YAML, then run the chosen subcommand."""
    cli = LightningCLI(Autoencoder, Digits, seed_everything_default=0, save_config_kwargs={"overwrite": True})
    print(f"validation: squared error per image {cli.trainer.callback_metrics['val_loss']:.3f}")


if __name__ == "__main__":
    main()

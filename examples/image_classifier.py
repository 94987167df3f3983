"""A small CNN on scikit-learn's digits, trained with AdamW behind SOAP or Muon, or alone.

    python -m examples.image_classifier --method soap     # or muon, or none
    lightning-so fit --config configs/vision.yaml         # the same from YAML

Only the list of callbacks differs between the three; logging, validation and ModelCheckpoint do not notice. The digits
are easy: all three end near 98 %. Which method trains faster is measured in benchmarks/, not here.
"""

import argparse
from functools import cache
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_so import SOAP, Muon, SecondOrder

METHODS = {"soap": SOAP, "muon": Muon}
TRAIN = 1500
BATCH = 60


@cache
def digits() -> TensorDataset:
    """1,797 handwritten digits, 8x8 pixels in [0, 1], and their labels."""
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels).long())


class Classifier(pl.LightningModule):
    """Two convolutions and two linear layers; nothing in it knows of second-order methods."""

    def __init__(self, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten classes."""
        return self.model(images)

    def measure(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """Loss of a batch; it and the accuracy are logged as means over the epoch."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({f"{stage}_loss": loss, f"{stage}_accuracy": accuracy}, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one training batch."""
        return self.measure(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy of one held-out batch."""
        self.measure(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, whatever the method."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


class Images(pl.LightningDataModule):
    """1,500 digits for training, the other 297 for validation.

    Args:
        batch_size: Images in a batch.
    """

    def __init__(self, batch_size: int = BATCH) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Part them, always in the same way."""
        always = torch.Generator().manual_seed(0)
        self.train, self.held = random_split(digits(), [TRAIN, len(digits()) - TRAIN], generator=always)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """One batch."""
        return DataLoader(self.held, len(self.held))


def main() -> None:
    """Train for `--epochs` epochs; print the accuracies; SecondOrder itself says what it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=[*METHODS, "none"], default="soap")
    parser.add_argument("--epochs", type=int, default=6, help=f"of {TRAIN // BATCH} steps each")
    parser.add_argument("--out", type=Path, default=Path("demo_out/digits"), help="where the best checkpoint goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # the layers are too small to be shared by threads
    pl.seed_everything(0)
    best = ModelCheckpoint(
        args.out, filename=args.method, monitor="val_accuracy", mode="max", enable_version_counter=False
    )
    # SOAP() as it is: 150 steps leave it a hundred in the rotated basis. A run of fewer than 50 steps would never get
    # there and needs a smaller SOAP(start=...).
    ours = [] if args.method == "none" else [SecondOrder(METHODS[args.method]())]
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        callbacks=[*ours, best],
        accelerator="cpu",
        devices=1,
        logger=False,
    )
    trainer.fit(Classifier(), Images())

    metrics = trainer.callback_metrics
    print(f"accuracy: train {metrics['train_accuracy']:.3f}, validation {metrics['val_accuracy']:.3f}")
    print(f"best validation {best.best_model_score:.3f} in {best.best_model_path}")


if __name__ == "__main__":
    main()

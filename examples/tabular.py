"""A classifier of table rows: tumours, benign or malign, from thirty measurements of their cells.

    lightning-so fit --config configs/tabular.yaml

The 569 rows ship with scikit-learn (breast cancer, Wisconsin).
"""

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

TRAIN = 448


class Rows(pl.LightningDataModule):
    """448 rows for training, the other 121 for validation; columns are standardised by the training rows.

    Args:
        batch_size: Rows in a batch.
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Part the rows, always in the same way."""
        values, labels = load_breast_cancer(return_X_y=True)
        order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
        x, y = torch.tensor(values, dtype=torch.float32)[order], torch.tensor(labels)[order]
        x = (x - x[:TRAIN].mean(0)) / x[:TRAIN].std(0)
        self.train, self.held = TensorDataset(x[:TRAIN], y[:TRAIN]), TensorDataset(x[TRAIN:], y[TRAIN:])

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """One batch."""
        return DataLoader(self.held, len(self.held))


class TableNet(pl.LightningModule):
    """Two hidden layers with dropout under AdamW; nothing in it knows of second-order methods.

    Args:
        width: Of the hidden layers.
        dropout: Share of hidden units that a step leaves out.
        lr: AdamW's learning rate.
        weight_decay: Its decoupled weight decay.
    """

    def __init__(self, width: int = 64, dropout: float = 0.2, lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(
            *(nn.Linear(30, width), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout)),
            nn.Linear(width, 2),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Cross-entropy and accuracy of the held-out rows."""
        logits = self.model(batch[0])
        accuracy = (logits.argmax(1) == batch[1]).float().mean()
        self.log_dict({"val_loss": F.cross_entropy(logits, batch[1]), "val_accuracy": accuracy}, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)

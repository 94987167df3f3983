"""Forecasts of a real series: the highest temperature of each of the next seven days in Seattle.

    python -m examples.gallery.forecasting

`weather.csv` holds four years of days, 2012 to 2015: precipitation, highest and lowest temperature, wind, as NOAA has
measured them (public domain). The last year is held out.
"""

import csv
import math
from datetime import date
from functools import cache
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

FILE = Path(__file__).with_name("weather.csv")
#: Days that are seen, and days that are forecast.
SEEN, AHEAD = 28, 7
HELD_OUT = 365
HIGHEST = 1


@cache
def days() -> tuple[Tensor, float]:
    """Six columns a day, (1461, 6): what was measured, standardised, and the season's sine and cosine; 1 in degrees."""
    with FILE.open() as file:
        rows = list(csv.reader(file))[1:]
    measured = torch.tensor([[float(value) for value in row[1:]] for row in rows])
    measured[:, 0].log1p_()  # rain
    known = measured[:-HELD_OUT]
    angles = [2 * math.pi * date(*map(int, row[0].split("/"))).timetuple().tm_yday / 365.25 for row in rows]
    season = torch.tensor([[math.sin(angle), math.cos(angle)] for angle in angles])
    return torch.cat([(measured - known.mean(0)) / known.std(0), season], 1), float(known[:, HIGHEST].std())


def windows(series: Tensor) -> TensorDataset:
    """Every window: what is seen, (28, 6), and the highest temperatures of the days after it, (7,)."""
    cut = series.unfold(0, SEEN + AHEAD, 1)  # windows, columns, days
    return TensorDataset(cut[:, :, :SEEN].mT.contiguous(), cut[:, HIGHEST, SEEN:].contiguous())


class Forecaster(pl.LightningModule):
    """A GRU whose last state is read by a linear layer, under AdamW; nothing in it knows of second-order methods.

    Args:
        width: Of the state.
        lr: AdamW's learning rate.
    """

    def __init__(self, width: int = 64, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.cells, self.read = nn.GRU(6, width, batch_first=True), nn.Linear(width, AHEAD)

    def forward(self, seen: Tensor) -> Tensor:
        """Temperatures of the days ahead less that of the last day, standardised, (B, 7)."""
        states, _ = self.cells(seen)
        return self.read(states[:, -1])

    def error(self, batch: list[Tensor]) -> Tensor:
        """Mean squared error."""
        seen, ahead = batch
        return F.mse_loss(self(seen), ahead - seen[:, -1:, HIGHEST])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Of one batch."""
        return self.error(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Root of the mean square over the held-out year, in degrees."""
        self.log("val_degrees", self.error(batch).sqrt() * days()[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


class Weather(pl.LightningDataModule):
    """Three years for training, the fourth for validation."""

    def setup(self, stage: str) -> None:
        """Cut the windows; those of validation begin in the held-out year."""
        series, _ = days()
        self.train, self.held = windows(series[:-HELD_OUT]), windows(series[-HELD_OUT:])

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of 64."""
        return DataLoader(self.train, 64, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """One batch."""
        return DataLoader(self.held, len(self.held))

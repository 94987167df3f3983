"""A byte-level language model on the source of Python's standard library: small, real, and on every machine.

Shapes: B batch, T context (bytes seen), D model width.
"""

import math
import sysconfig
from functools import cache
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

BYTES = 256
HELD_OUT = 200_000
VALIDATION_BATCHES = 20
VALIDATION_SEED = 99


@cache
def corpus() -> tuple[Tensor, Tensor]:
    """The standard library's top-level modules as bytes: the text to train on and the last 200 kB, held out."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)
    return text[:-HELD_OUT], text[-HELD_OUT:]


def warmup_cosine(step: int, *, total: int, warmup: int, floor: float = 0.1) -> float:
    """Factor of the learning rate at `step`: a linear warm-up times a cosine that ends at `floor`."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(step, total) / total))
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * cosine)


def next_byte_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the next byte, in nats."""
    seen_BT, next_BT = batch
    return F.cross_entropy(model(seen_BT).flatten(0, 1), next_BT.flatten())


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.key, self.value, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Attend to the past, then transform each position."""
        y_BTD = self.norm1(x_BTD)
        q, k, v = (f(y_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(attended.transpose(1, 2).flatten(-2))
        return x_BTD + self.down(F.gelu(self.up(self.norm2(x_BTD))))


class ByteTransformer(nn.Module):
    """A decoder-only transformer over bytes with learned positions and an untied head."""

    def __init__(self, d: int = 128, layers: int = 2, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(BYTES, d), nn.Embedding(context, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, BYTES, bias=False)
        for table in (self.embed, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, bytes_BT: Tensor) -> Tensor:
        """Logits of the next byte at every position, [B, T, 256]."""
        x_BTD = self.embed(bytes_BT) + self.position.weight[: bytes_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD))


class ByteLM(pl.LightningModule):
    """The byte transformer under AdamW with a warm-up and a cosine: nothing in it knows of second-order methods.

    Args:
        d: Model width.
        layers: Number of blocks.
        heads: Attention heads of a block.
        context: Bytes a prediction may look back on.
        lr: Peak learning rate.
        total_steps: Steps over which the cosine falls to 10 %.
        warmup: Steps of linear warm-up.
        betas: AdamW's betas.
        weight_decay: AdamW's decoupled weight decay.
    """

    def __init__(
        self,
        d: int = 128,
        layers: int = 2,
        heads: int = 4,
        context: int = 64,
        lr: float = 3e-3,
        total_steps: int = 400,
        warmup: int = 20,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = ByteTransformer(d, layers, heads, context)

    def forward(self, bytes_BT: Tensor) -> Tensor:
        """Logits of the next byte at every position, [B, T, 256]."""
        return self.model(bytes_BT)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, logged as `train_loss`."""
        loss = next_byte_loss(self.model, batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss of one held-out batch, logged as `val_loss` (the mean over batches and ranks)."""
        self.log("val_loss", next_byte_loss(self.model, batch), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> dict:
        """AdamW and its schedule, stepped once per optimizer step."""
        hp = self.hparams
        optimizer = torch.optim.AdamW(self.parameters(), lr=hp.lr, betas=hp.betas, weight_decay=hp.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, total=hp.total_steps, warmup=hp.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Windows(Dataset):
    """`count` windows of the text at random places, fixed by `seed`: item i is the same on every machine and rank."""

    def __init__(self, text: Tensor, context: int, count: int, seed: int) -> None:
        self.text, self.context = text, context
        generator = torch.Generator().manual_seed(seed)
        self.starts = torch.randint(0, len(text) - context - 1, (count,), generator=generator)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The bytes seen and the bytes that follow each of them, [T] and [T]."""
        start = int(self.starts[index])
        window = self.text[start : start + self.context + 1].long()
        return window[:-1], window[1:]


class ByteText(pl.LightningDataModule):
    """Random windows of the standard library's source; one epoch is as many windows as the text is long.

    Args:
        context: Bytes in a window.
        batch_size: Windows in a batch of one rank.
        seed: Where the training windows lie; the validation windows are always the same.
    """

    def __init__(self, context: int = 64, batch_size: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader:
        """Batches of the training text, in the order of the seed."""
        hp = self.hparams
        text, _ = corpus()
        return DataLoader(Windows(text, hp.context, len(text) // hp.context, hp.seed), hp.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Twenty fixed batches of the held-out text."""
        hp = self.hparams
        _, text = corpus()
        return DataLoader(Windows(text, hp.context, VALIDATION_BATCHES * hp.batch_size, VALIDATION_SEED), hp.batch_size)

"""Fine-tuning: the byte language model learns Python's source first, then the prose of Python's manual.

    lightning-so fit --config configs/finetune.yaml

Lower layers stay as the source has left them; the last block, the last normalisation and the head are trained. The text
is the language reference that ships with Python (`pydoc_data`). `--second_order false` is the training without K-FAC.
"""

from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from examples.byte_lm import VALIDATION_BATCHES, VALIDATION_SEED, ByteLM, ByteText, Windows, corpus, next_byte_loss

HELD_OUT = 50_000
BATCH = 16


@cache
def prose() -> tuple[Tensor, Tensor]:
    """The manual's topics as bytes: the text to train on and the last 50 kB, held out."""
    text = torch.frombuffer(bytearray("\n".join(topics[name] for name in sorted(topics)).encode()), dtype=torch.uint8)
    return text[:-HELD_OUT], text[-HELD_OUT:]


def learn_source(model: ByteLM, steps: int) -> None:
    """Train on Python's source with AdamW, in a loop without Lightning."""
    context = model.hparams.context
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    windows = iter(DataLoader(Windows(corpus()[0], context, steps * BATCH, seed=0), BATCH))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min((step + 1) / 20, (steps - step) / steps)
        optimizer.zero_grad()
        next_byte_loss(model.model, next(windows)).backward()
        optimizer.step()


class FineTuned(ByteLM):
    """The byte LM that knows source; of it the last block, the last normalisation and the head are trained.

    Args:
        source_steps: Steps on source, made where there is no checkpoint.
        checkpoint: The weights after them, written if they are not there.
        **of_byte_lm: Arguments of `ByteLM`.
    """

    def __init__(
        self, source_steps: int = 400, checkpoint: Path = Path("demo_out/source.pt"), **of_byte_lm: Any
    ) -> None:
        super().__init__(**of_byte_lm)
        self.source_steps, self.checkpoint = source_steps, checkpoint
        self.requires_grad_(False)
        for part in (self.model.blocks[-1], self.model.norm, self.model.head):
            part.requires_grad_(True)

    def setup(self, stage: str) -> None:
        """Take the weights that know source."""
        if not self.checkpoint.exists():
            source = ByteLM(**{name: self.hparams[name] for name in ("d", "layers", "context")})
            learn_source(source, self.source_steps)
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save(source.model.state_dict(), self.checkpoint)
        self.model.load_state_dict(torch.load(self.checkpoint, weights_only=True))


class Prose(ByteText):
    """Random windows of the manual's prose; arguments are those of `ByteText`."""

    def train_dataloader(self) -> DataLoader:
        """Batches of the training text, in the order of the seed."""
        hp = self.hparams
        text, _ = prose()
        return DataLoader(Windows(text, hp.context, len(text) // hp.context, hp.seed), hp.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Twenty fixed batches of the held-out text."""
        hp = self.hparams
        _, text = prose()
        return DataLoader(Windows(text, hp.context, VALIDATION_BATCHES * hp.batch_size, VALIDATION_SEED), hp.batch_size)

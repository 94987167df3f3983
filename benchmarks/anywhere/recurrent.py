"""Recurrent networks of torch's own: an LSTM over bytes of Python's standard library, a tanh RNN over pixels."""

from dataclasses import replace

from torch import Tensor, nn

from benchmarks.anywhere.drawing import drawn
from benchmarks.shared.images import digits
from benchmarks.shared.problems import Problem, byte_lm, classification, seeded
from examples.byte_lm import BYTES


class ByteLSTM(nn.Module):
    """One layer of 128."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cells, self.head = nn.Embedding(BYTES, 64), nn.LSTM(64, 128), nn.Linear(128, BYTES)

    def forward(self, bytes_BT: Tensor) -> Tensor:
        """Logits of the next byte at every position, [B, T, 256]."""
        return self.head(self.cells(self.embed(bytes_BT).transpose(0, 1))[0]).transpose(0, 1)


class PixelRNN(nn.Module):
    """64 tanh units that see an image's pixels one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.RNN(1, 64), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits after the last pixel, (B, 1, 8, 8) -> (B, 10)."""
        return self.head(self.cells(images.flatten(1).t().unsqueeze(-1))[0][-1])


def lstm() -> Problem:
    """The next byte, by an LSTM."""
    return replace(byte_lm("lstm", make=ByteLSTM), steps=450)


def tanh_rnn() -> Problem:
    """Which digit it is, 64 steps deep."""
    images, labels = digits().train
    batch = drawn(images, labels, size=128)
    return Problem("tanh_rnn", seeded(PixelRNN), batch, classification, [(images, labels)], 700, "cross-entropy")

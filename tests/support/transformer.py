"""A small language model whose parameters are cut unevenly on two and four ranks, and a stream of batches for it."""

import torch
from torch import nn

WORDS, WIDTH, LENGTH, BATCH = 13, 15, 6, 8


class Block(nn.Module):
    """Causal attention and a gated MLP, each after a norm; 15, 17 and 1 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        # A key's bias has no gradient but rounding, of which Adam would make whole steps.
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=n == 2) for n in range(3))
        self.join = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 17), nn.Linear(17, WIDTH)
        self.gate = nn.Linear(WIDTH, 1)

    def forward(self, x):
        y = self.first(x)
        q, k, v = (layer(y).unflatten(-1, (3, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        # By hand: torch's fused attention on CPU has float32 inside, in float64 too.
        scores = q @ k.mT / q.shape[-1] ** 0.5
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        y = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        x = x + self.join(y.transpose(1, 2).flatten(2))
        y = self.second(x)
        return x + torch.sigmoid(self.gate(y)) * self.down(nn.functional.gelu(self.up(y)))


class Transformer(nn.Module):
    """A small language model; the places are a parameter of the root, the bottleneck has 3 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.narrow, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3), nn.Linear(3, WORDS)

    def forward(self, tokens):
        x = self.words(tokens) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(torch.tanh(self.narrow(self.norm(x))))


def batch(number):
    """A fixed stream of global batches: words that depend on the one before, and the next words."""
    generator = torch.Generator().manual_seed(number)
    noise = torch.randint(0, 3, (BATCH, LENGTH + 1), generator=generator)
    tokens = (noise.cumsum(1) * 2 + noise[:, :1]) % WORDS
    return tokens[:, :-1], tokens[:, 1:]

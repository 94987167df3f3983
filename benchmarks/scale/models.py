"""The models of the scaling curves, as shapes: nothing of them runs, so that layers stand in a list."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import nn


@dataclass(frozen=True)
class Model:
    """A model, and what a rank does with it in a step.

    Attributes:
        layers: Its layers.
        batch: Samples of a rank at a step.
        rows: Rows of a sample in each of its linear layers: tokens.
        products: Multiply-adds of a forward pass of one sample; None for `rows` times each weight.
    """

    layers: Callable[[], list[nn.Module]]
    batch: int
    rows: int
    products: float | None = None


class Training(pl.LightningModule):
    """A model on AdamW."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def resnet50() -> list[nn.Module]:
    """ResNet-50: bottlenecks 3, 4, 6, 3."""

    def layers() -> Iterator[nn.Module]:
        yield from convolution(3, 64, 7)
        entering = 64
        for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for block in range(count):
                yield from convolution(entering, width, 1)
                yield from convolution(width, width, 3)
                yield from convolution(width, 4 * width, 1)
                if not block:
                    yield from convolution(entering, 4 * width, 1)
                entering = 4 * width
        yield nn.Linear(entering, 1000)

    return list(layers())


def convolution(n_in: int, n_out: int, side: int) -> list[nn.Module]:
    """A convolution and its BatchNorm."""
    return [nn.Conv2d(n_in, n_out, side, bias=False), nn.BatchNorm2d(n_out)]


def vit_b() -> list[nn.Module]:
    """ViT-B/16: 12 blocks of width 768."""
    return [nn.Conv2d(3, 768, 16), nn.Embedding(197, 768), *transformer(768, 12, 3072), nn.Linear(768, 1000)]


def gpt(width: int, blocks: int) -> list[nn.Module]:
    """GPT-2's layout with its vocabulary, the head apart from the embedding."""
    ends = nn.Embedding(50_304, width), nn.Embedding(2048, width), nn.Linear(width, 50_304, bias=False)
    return [*ends[:2], *transformer(width, blocks, 4 * width), ends[2]]


def transformer(width: int, blocks: int, inner: int) -> list[nn.Module]:
    """Blocks with query, key and value apart."""
    found = list[nn.Module]()
    for _ in range(blocks):
        found += [nn.LayerNorm(width), *(nn.Linear(width, width) for _ in range(4)), nn.LayerNorm(width)]
        found += [nn.Linear(width, inner), nn.Linear(inner, width)]
    return [*found, nn.LayerNorm(width)]


def llama(width: int = 4096, blocks: int = 32, inner: int = 11_008) -> list[nn.Module]:
    """Llama's 7B: RMSNorm, SwiGLU, no biases."""
    found: list[nn.Module] = [nn.Embedding(32_000, width)]
    for _ in range(blocks):
        found += [nn.RMSNorm(width), *(nn.Linear(width, width, bias=False) for _ in range(4)), nn.RMSNorm(width)]
        found += [nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)]
        found.append(nn.Linear(inner, width, bias=False))
    return [*found, nn.RMSNorm(width), nn.Linear(width, 32_000, bias=False)]


MODELS = {
    "resnet50": Model(resnet50, 64, 1, 4.1e9),
    "vit_b": Model(vit_b, 64, 197),
    "gpt_125m": Model(lambda: gpt(768, 12), 8, 1024),
    "gpt_1.3b": Model(lambda: gpt(2048, 24), 4, 2048),
    "llama_7b": Model(llama, 1, 4096),
}

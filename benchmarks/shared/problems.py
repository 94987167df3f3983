"""The problems that are benchmarked, on real data: `PROBLEMS` holds the names, `load(name)` builds one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.shared.images import Batch, Images, digits, fashion, mnist
from examples.byte_lm import VALIDATION_BATCHES, VALIDATION_SEED, ByteTransformer, corpus


@dataclass(frozen=True)
class Problem:
    """What a run needs to know of a problem.

    Attributes:
        model: A fresh model of a seed.
        batch: The next training batch of a generator.
        loss: Training loss of a batch, with its graph: the "mean" over samples, or over bytes, or their "sum".
        held: The fixed validation batches, all of one size or weighed equally.
        steps: Steps of a usual run.
        loss_name: What the validation loss is called in tables and plots.
        device: Where models and batches are.
        score: The validation loss of a batch, where it is another than the training loss.
    """

    name: str
    model: Callable[[int], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    loss: Callable[..., Tensor]
    held: Sequence[Batch]
    steps: int
    loss_name: str
    device: str = "cpu"
    score: Callable[..., Tensor] | None = None

    @torch.no_grad()
    def validation(self, model: nn.Module) -> float:
        """Mean loss over the validation batches, in evaluation mode."""
        model.eval()
        score = self.score or self.loss
        loss = sum(score(model, batch).item() for batch in self.held) / len(self.held)
        model.train()
        return loss


# ------------------------------------------------------------------ bytes
def next_byte(model: nn.Module, batch: Batch, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the next byte."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction=reduction)


def byte_lm(
    name: str, batch_size: int = 16, context: int = 64, make: Callable[[], nn.Module] = ByteTransformer
) -> Problem:
    """Next-byte prediction, by default with the two-block transformer on windows of 64 bytes."""
    train, held_out = corpus()

    def draw(text: Tensor, generator: torch.Generator, size: int = batch_size) -> Batch:
        starts = torch.randint(0, len(text) - context - 1, (size,), generator=generator)
        windows = torch.stack([text[start : start + context + 1] for start in starts.tolist()]).long()
        return windows[:, :-1], windows[:, 1:]

    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    held = [draw(held_out, generator, 16) for _ in range(VALIDATION_BATCHES)]
    return Problem(name, seeded(make), partial(draw, train), next_byte, held, 400, "nats per byte")


def byte_lm_large(name: str, batch_size: int = 32) -> Problem:
    """The same with eight blocks of width 768 on windows of 256 bytes: 57 million parameters, 8192 bytes a batch."""
    return byte_lm(name, batch_size, 256, partial(ByteTransformer, d=768, layers=8, heads=12, context=256))


def byte_lm_medium(name: str, batch_size: int = 4) -> Problem:
    """The same with seven blocks of width 320 on windows of 64 bytes: 8.8 million parameters, 256 bytes a batch."""
    return byte_lm(name, batch_size, 64, partial(ByteTransformer, d=320, layers=7, heads=5))


# ------------------------------------------------------------------ images
def image_problem(
    name: str, data: Callable[[], Images], batch_size: int, steps: int, make: Callable, loss: Callable, loss_name: str
) -> Problem:
    """A problem on images: batches drawn with replacement, the validation images as a single batch."""
    images = data()
    pixels, labels = images.train

    def draw(generator: torch.Generator) -> Batch:
        chosen = torch.randint(0, len(pixels), (batch_size,), generator=generator)
        return pixels[chosen], labels[chosen]

    return Problem(name, seeded(partial(make, pixels[0].numel())), draw, loss, [images.held], steps, loss_name)


def autoencoder(pixels: int, hidden: Sequence[int] = (500, 250, 125)) -> nn.Module:
    """The deep autoencoder (Hinton and Salakhutdinov 2006), tanh, with a linear code of 30; 8x8 images enter at 500."""
    widths = [pixels, *hidden, 30]
    widths += widths[-2::-1]
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        code_or_output = n_out == 30 or i == len(widths) - 2
        layers += [nn.Linear(n_in, n_out)] if code_or_output else [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*layers)


def squared_error(model: nn.Module, batch: Batch, reduction: str = "mean") -> Tensor:
    """Squared error summed over an image's pixels, averaged over images."""
    images, _ = batch
    losses = (model(images) - images.flatten(1)).square().sum(1)
    return losses.mean() if reduction == "mean" else losses.sum()


def bernoulli(model: nn.Module, batch: Batch, reduction: str = "mean") -> Tensor:
    """Cross-entropy of pixels that are on or off, the outputs their logits, summed over an image's pixels."""
    images, _ = batch
    losses = F.binary_cross_entropy_with_logits(model(images), images.flatten(1), reduction="none").sum(1)
    return losses.mean() if reduction == "mean" else losses.sum()


def squared_error_of_logits(model: nn.Module, batch: Batch, reduction: str = "mean") -> Tensor:
    """Squared error of the pixels that logits tell, summed over an image's, averaged over images."""
    images, _ = batch
    losses = (model(images).sigmoid() - images.flatten(1)).square().sum(1)
    return losses.mean() if reduction == "mean" else losses.sum()


def perceptron(pixels: int) -> nn.Module:
    """From the left half of an image to its right half: two hidden layers of 128."""
    half = pixels // 2
    return nn.Sequential(nn.Linear(half, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, pixels - half))


def half_error(model: nn.Module, batch: Batch, reduction: str = "mean") -> Tensor:
    """Squared error of the right half, summed over its pixels, averaged over images."""
    images, _ = batch
    left, right = images.flatten(1, 2).chunk(2, -1)
    losses = (model(left.flatten(1)) - right.flatten(1)).square().sum(1)
    return losses.mean() if reduction == "mean" else losses.sum()


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a projected shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
        same = n_in == n_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform and add."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet(pixels: int, blocks: int = 1) -> nn.Module:
    """A ResNet of 16, 32 and 64 channels with residual blocks of each; the images' size does not matter to it."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(Residual(16, 16, 1) for _ in range(blocks)),
        Residual(16, 32, 2),
        *(Residual(32, 32, 1) for _ in range(blocks - 1)),
        Residual(32, 64, 2),
        *(Residual(64, 64, 1) for _ in range(blocks - 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def classification(model: nn.Module, batch: Batch, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the class."""
    images, labels = batch
    return F.cross_entropy(model(images), labels, reduction=reduction)


# ------------------------------------------------------------------ the registry
def seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """A factory whose model depends on its seed alone."""

    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make()

    return model


def autoencoder_on(name: str, data: Callable[[], Images], batch_size: int = 256) -> Problem:
    """The autoencoder problem on one data set."""
    return image_problem(name, data, batch_size, 200, autoencoder, squared_error, "squared error per image")


def bernoulli_on(name: str, data: Callable[[], Images], batch_size: int = 256) -> Problem:
    """The deep autoencoder of pixels that are on or off, scored by the squared error."""
    made = image_problem(name, data, batch_size, 200, autoencoder, bernoulli, "squared error per image")
    return replace(made, score=squared_error_of_logits)


def cnn_on(name: str, data: Callable[[], Images], batch_size: int = 128) -> Problem:
    """The convolutional problem on one data set."""
    return image_problem(name, data, batch_size, 120, resnet, classification, "cross-entropy")


def wide_on(name: str, data: Callable[[], Images], batch_size: int = 128) -> Problem:
    """A wide autoencoder, 784-1000-500-250-30, in small batches."""
    make = partial(autoencoder, hidden=(1000, 500, 250))
    return image_problem(name, data, batch_size, 200, make, squared_error, "squared error per image")


def resnet20_on(name: str, data: Callable[[], Images], batch_size: int = 128) -> Problem:
    """A ResNet-20."""
    return image_problem(name, data, batch_size, 120, partial(resnet, blocks=3), classification, "cross-entropy")


def regression_on(name: str, data: Callable[[], Images], batch_size: int = 64) -> Problem:
    """A small regression: half of an image from the other."""
    return image_problem(name, data, batch_size, 200, perceptron, half_error, "squared error per image")


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "byte_lm": byte_lm,
    "byte_lm_2k": partial(byte_lm, batch_size=32),
    "byte_lm_8k": partial(byte_lm, batch_size=128),
    "byte_lm_medium": byte_lm_medium,
    "byte_lm_large": byte_lm_large,
    "autoencoder": partial(autoencoder_on, data=digits),
    "autoencoder_mnist": partial(autoencoder_on, data=mnist),
    "autoencoder_fashion": partial(autoencoder_on, data=fashion),
    "autoencoder_bernoulli_mnist": partial(bernoulli_on, data=mnist),
    "autoencoder_wide_mnist": partial(wide_on, data=mnist),
    "resnet20": partial(resnet20_on, data=digits),
    "regression": partial(regression_on, data=digits),
    "cnn": partial(cnn_on, data=digits),
    "cnn_fashion": partial(cnn_on, data=fashion),
}


def on(problem: Problem, device: str) -> Problem:
    """The same problem with models and batches on a device; what is drawn does not depend on it."""

    def moved(batch: Batch) -> Batch:
        return batch[0].to(device), batch[1].to(device)

    return replace(
        problem,
        model=lambda seed: problem.model(seed).to(device),
        batch=lambda generator: moved(problem.batch(generator)),
        held=[moved(batch) for batch in problem.held],
        device=device,
    )


def load(name: str, device: str = "cpu", batch_size: int | None = None) -> Problem:
    """Build the problem called `name` on a device, with its own batch size or another.

    Raises:
        KeyError: No such problem.
        Missing: Its data is not on this machine.
    """
    if name not in PROBLEMS:
        raise KeyError(f"no problem {name!r}; there are: {', '.join(PROBLEMS)}")
    problem = PROBLEMS[name](name, **({} if batch_size is None else {"batch_size": batch_size}))
    return problem if device == "cpu" else on(problem, device)

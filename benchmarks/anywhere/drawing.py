"""What the problems share: batches of a data set that is drawn from with replacement, and losses in two writings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shared.problems import Problem, seeded

#: Seed of what all runs are scored on, which is no seed of a run.
SCORED_SEED = 4242


def generator(seed: int = SCORED_SEED) -> torch.Generator:
    """A generator of a seed, by default that of what is scored."""
    return torch.Generator().manual_seed(seed)


def drawn(*tensors: Tensor, size: int) -> Callable[[torch.Generator], Any]:
    """Batches of the same rows of each tensor."""

    def batch(generator: torch.Generator) -> Any:
        chosen = torch.randint(0, len(tensors[0]), (size,), generator=generator)
        return tuple(tensor[chosen] for tensor in tensors)

    return batch


def summed(problem: Problem) -> Problem:
    """The same problem with the loss of a batch summed, where it was a mean; the score is the mean still."""

    def total(model: nn.Module, batch: Any, _: str = "sum") -> Tensor:
        return problem.loss(model, batch, "sum")

    return Problem(
        f"{problem.name.removesuffix('_mean')}_sum",
        problem.model,
        problem.batch,
        total,
        problem.held,
        problem.steps,
        problem.loss_name,
        score=problem.score or problem.loss,
    )


def full(
    name: str, make: Callable[[], nn.Module], loss: Callable[..., Tensor], whole: Any, steps: int, loss_name: str
) -> Problem:
    """A problem whose every batch is the whole data, which is scored too."""
    return Problem(name, seeded(make), lambda _: whole, loss, [whole], steps, loss_name)

"""A graph network on molecules: that of `examples.molecules`, on batches drawn with replacement."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.anywhere.drawing import generator
from benchmarks.shared.problems import Problem, seeded
from examples.molecules import Batch, MessagePassing, joined, molecules


def squared_error(model: nn.Module, batch: Batch, reduction: str = "mean") -> Tensor:
    """Of logP in its deviations."""
    return F.mse_loss(model(batch), batch.logp, reduction=reduction)


def molecular_graphs() -> Problem:
    """32 molecules a batch, scored on all."""
    count = len(molecules()[0])

    def draw(generator: torch.Generator) -> Batch:
        return joined(torch.randint(0, count, (32,), generator=generator).tolist())

    held = [joined(torch.randperm(count, generator=generator()).tolist())]
    return Problem("molecular_graphs", seeded(MessagePassing), draw, squared_error, held, 800, "squared error of logP")

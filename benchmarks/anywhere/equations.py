"""Whole-batch problems: Poisson's equation by a network, and a deep linear network, whose way leads past saddles."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.anywhere.drawing import full
from benchmarks.shared.images import digits
from benchmarks.shared.problems import Problem, squared_error
from examples.pinn import EQUATIONS, PINN, Points

#: Of the deep linear network: 64 pixels, a code of 32, and 64 pixels.
WIDTHS = (64, 64, 64, 32, 64, 64, 64)


def poisson() -> Problem:
    """Mean square of the residual at 512 points inside, and of the error at 128 of the boundary; 2-32-32-32-1, tanh."""
    equation, points = EQUATIONS["poisson"], Points(128)
    points.setup("fit")
    inside, edge = points.train.tensors

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor], _: str = "mean") -> Tensor:
        # It has derivatives by points in it: taken also where the score is, which is without gradients.
        with torch.enable_grad():
            error = net(batch[1]) - equation.solution(batch[1])
            return equation.residual(net, batch[0]).square().mean() + error.square().mean()

    return full("poisson", lambda: PINN("poisson").net, loss, (inside.flatten(0, 1), edge), 2000, "squared residual")


def linear_autoencoder() -> nn.Module:
    """Linear layers alone; torch's own start is small enough for the product of six to be near a saddle."""
    layers = [nn.Linear(n_in, n_out, bias=False) for n_in, n_out in pairwise(WIDTHS)]
    return nn.Sequential(nn.Flatten(), *layers)


def deep_linear() -> Problem:
    """Digits less their mean through a code of 32: six linear layers, all 1,500 images in one batch."""
    images, labels = digits().train
    centred = (images - images.mean(0), labels)
    return full("deep_linear", linear_autoencoder, squared_error, centred, 1000, "squared error per image")

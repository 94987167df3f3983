"""The Hessian of a loss function in its predictions, `H = B B'` a sample, and what flows backward from it.

    draw:     sqrt(w) B e, E[e e'] = I, so that its outer product has the mean w H
    column:   sqrt(w) B e_j, whose outer products sum to w H

w is the weight of each term in the loss; of a negative one its size.
Source: Martens 2014, arXiv 1412.1193, section 9; Schraudolph 2002, Neural Computation 14.
Legend: N samples, E predictions of a sample, P positions of a sample, C classes.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Curvature(Protocol):
    """The Hessian of every term of a loss function.

    Attributes:
        shape: That of the predictions.
    """

    @property
    def shape(self) -> torch.Size:
        """See above."""
        ...

    def draw(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """A gradient in the predictions, drawn at random."""
        ...

    def columns(self, samples: int) -> int:
        """How many columns B has for one of `samples` samples."""
        ...

    def column(self, weights: Tensor, samples: int, index: int) -> Tensor:
        """One column of B for every sample."""
        ...

    def times(self, weights: Tensor, vector: Tensor) -> Tensor:
        """`w H v`, with the sign that weights have; the shape of the predictions."""
        ...


@dataclass(frozen=True, eq=False)
class Elementwise:
    """Loss functions of one prediction each, `H = diag(h)`: squared errors, logistic losses.

    Attributes:
        h: Second derivative of every term, the shape of the predictions.
    """

    h: Tensor

    @property
    def shape(self) -> torch.Size:
        """See `Curvature`."""
        return self.h.shape

    def draw(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Random signs."""
        signs = torch.randint(0, 2, self.h.shape, generator=generator, device=self.h.device)
        return self._root(weights) * (2 * signs - 1)

    def columns(self, samples: int) -> int:
        """One a prediction."""
        return self.h.numel() // samples

    def column(self, weights: Tensor, samples: int, index: int) -> Tensor:
        """Only one prediction of every sample."""
        root = self._root(weights)
        one = torch.zeros_like(root, memory_format=torch.contiguous_format)
        one.view(samples, -1)[:, index] = root.reshape(samples, -1)[:, index]
        return one

    def times(self, weights: Tensor, vector: Tensor) -> Tensor:
        """`w h v`."""
        return weights.to(self.h.dtype) * self.h * vector

    def _root(self, weights: Tensor) -> Tensor:
        return (weights.to(self.h.dtype).abs() * self.h).sqrt()


@dataclass(frozen=True, eq=False)
class Softmax:
    """Cross-entropy of classes, `H = diag(p) - p p'`: drawn labels, or `B = diag(sqrt p) - p sqrt(p)'`.

    Attributes:
        p: Probabilities.
        dim: The dimension of the classes.
    """

    p: Tensor
    dim: int

    @property
    def shape(self) -> torch.Size:
        """See `Curvature`."""
        return self.p.shape

    def draw(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """`p - e_y` with labels y of the model's own distribution."""
        p = self.p.movedim(self.dim, -1)
        labels = torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=generator).view(*p.shape[:-1], 1)
        gradient = (p - torch.zeros_like(p).scatter_(-1, labels, 1.0)) * self._root(weights, p)
        return gradient.movedim(-1, self.dim)

    def columns(self, samples: int) -> int:
        """One a class and position."""
        return self.p.numel() // samples

    def column(self, weights: Tensor, samples: int, index: int) -> Tensor:
        """`sqrt(p_c) (e_c - p)` at one position of every sample."""
        p = self.p.movedim(self.dim, -1)
        place, c = divmod(index, p.shape[-1])
        found = torch.zeros_like(p, memory_format=torch.contiguous_format)
        p_NPC, root_NP1 = (t.reshape(samples, -1, t.shape[-1])[:, place] for t in (p, self._root(weights, p)))
        column = -p_NPC * p_NPC[:, c : c + 1].sqrt()
        column[:, c] += p_NPC[:, c].sqrt()
        found.view(samples, -1, p.shape[-1])[:, place] = column * root_NP1
        return found.movedim(-1, self.dim)

    def times(self, weights: Tensor, vector: Tensor) -> Tensor:
        """`w p (v - p'v)`."""
        p, v = (t.movedim(self.dim, -1) for t in (self.p, vector))
        weighted = weights.to(p.dtype).reshape(p.shape[:-1])[..., None] * p
        return (weighted * (v - (p * v).sum(-1, keepdim=True))).movedim(-1, self.dim)

    @staticmethod
    def _root(weights: Tensor, p: Tensor) -> Tensor:
        """Square roots of the weights, one a position, as a last dimension of one."""
        return weights.to(p.dtype).abs().reshape(p.shape[:-1]).sqrt()[..., None]

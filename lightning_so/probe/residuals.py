"""The residuals of a least-squares loss and their Jacobian: by row in a few passes, or one residual after the other.

Of a layer that treats samples apart, a weight that every sample has a copy of has all rows of the Jacobian in its
gradient: one pass a residual of a sample, however many samples there are. Whether samples are apart is seen at every
call, from what the same pass gives for a random combination of residuals.

Legend: M residuals, n numbers of the weights, B samples, Q residuals of a sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_so.comm import Local
from lightning_so.errors import ConfigError
from lightning_so.linalg.least_squares import Residuals
from lightning_so.linalg.plain import plain
from lightning_so.losses.terms import Term, lasts, terms

#: Rows whose combination is another than that of the residuals by more than this share are no rows.
APART = 1e-3


#: Most numbers of a Jacobian: 2 GB in float64.
MOST = 2**28


@dataclass(frozen=True, eq=False)
class Leaf:
    """The copies of a parameter that the samples of one call have.

    Attributes:
        number: Of the parameter.
        copies: Shape (B, ...).
    """

    number: int
    copies: Tensor


@dataclass
class Copying(TorchFunctionMode):
    """While it is entered, linear layers give every sample a copy of their weights.

    Attributes:
        params: The parameters that are trained.
        leaves: The copies.
    """

    params: Sequence[Tensor]
    leaves: list[Leaf] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Know parameters by identity."""
        super().__init__()
        self._numbers = {id(param): number for number, param in enumerate(self.params)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of torch."""
        if func is F.linear and not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda"):
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if input.dim() < 2 or not {id(weight), id(bias)} & self._numbers.keys():
            return F.linear(input, weight, bias)
        input = plain(input)
        x_BTi = input.flatten(1, -2) if input.dim() > 2 else input[:, None]
        y_BTo = x_BTi @ self._copied(weight, len(x_BTi)).mT
        if bias is not None:
            y_BTo = y_BTo + self._copied(bias, len(x_BTi))[:, None]
        return y_BTo.view(*input.shape[:-1], -1)

    def _copied(self, param: Tensor, samples: int) -> Tensor:
        number = self._numbers.get(id(param))
        copies = (param if number is None else param.detach())[None].expand(samples, *param.shape)
        if number is not None:
            self.leaves.append(Leaf(number, copies.requires_grad_()))
        return copies


def residuals(loss: Callable[[], Tensor], params: Sequence[Tensor], name: str) -> Residuals:
    """Take a loss apart.

    Args:
        loss: Computes it, with its graph.
        params: Whole parameters in the order of the space.
        name: Who asks, for messages.

    Returns:
        Its residuals.

    Raises:
        ConfigError: If the loss is not a sum of squares with weights that are not negative, the Jacobian too large, or
            the model compiled.
    """
    copying = Copying(params)
    with copying:
        value = loss()
    if not lasts(value):
        raise ConfigError(
            f"{name} goes backward through the loss once a residual, and the graph of a compiled model bears one pass: "
            f"leave torch.compile out (the model is small)."
        )
    found = terms(value, name)
    count, columns = sum(term.values.numel() for term in found), sum(param.numel() for param in params)
    if count * columns > MOST:
        raise ConfigError(
            f"{name}: the Jacobian of {count:,} residuals in {columns:,} weights has {count * columns:,} numbers; "
            f"at most {MOST:,} are allowed. Use fewer points a batch, or NewtonCG(), which needs products alone."
        )
    values, rows, by_row = [], [], 0
    for term in found:
        second = term.curved(torch.ones_like(term.values))
        if not term.head.squared or bool((second < 0).any()):
            raise ConfigError(
                f"{name} is for least squares, sums of squares with weights that are not negative, and this loss has "
                f"{term.head.node.name()}{' with a negative weight' if term.head.squared else ''}. Use mse_loss or "
                f"squares, or NewtonCG for other losses."
            )
        root = second.sqrt().flatten()
        J_Mn = _by_row(term, copying.leaves, params)
        by_row += 0 if J_Mn is None else len(J_Mn)
        J_Mn = _one_by_one(term, copying.leaves, params) if J_Mn is None else J_Mn
        values.append(root * term.values.flatten())
        rows.append(J_Mn.mul_(root[:, None]))
    return Residuals(torch.cat(values), torch.cat(rows), by_row)


def of_all_ranks(mine: Residuals, comm: Local) -> Residuals:
    """Residuals of the mean loss over ranks, on every rank: a collective.

    Args:
        mine: Of this rank's loss; ranks may have different numbers of them.
        comm: How ranks talk.

    Returns:
        Those of all, the ranks one after the other.
    """
    counts = torch.zeros(comm.ranks, dtype=torch.int64, device=mine.values.device)
    counts[comm.rank] = len(mine.values)
    by_row = torch.zeros_like(counts) + mine.by_row
    comm.sum(counts)
    comm.sum(by_row)
    first = int(counts[: comm.rank].sum())
    table = mine.jacobian.new_zeros(int(counts.sum()), mine.jacobian.shape[1] + 1)
    # The mean over ranks: the sum of all squares, divided by the number of ranks.
    table[first : first + len(mine.values)] = torch.cat([mine.values[:, None], mine.jacobian], 1) / comm.ranks**0.5
    comm.sum(table)
    return Residuals(table[:, 0], table[:, 1:], int(by_row[0]))


def _by_row(term: Term, leaves: Sequence[Leaf], params: Sequence[Tensor]) -> Tensor | None:
    """The Jacobian of a term whose samples are apart; None where they are not, or a weight has no copies."""
    if term.values.dim() == 0:
        return None
    size = len(term.values)
    u_BQ = torch.randn(term.values.shape, dtype=term.values.dtype, generator=torch.Generator().manual_seed(0))
    u_BQ = u_BQ.to(term.values.device).view(size, -1)
    combined = _gradients(term, u_BQ, [*params, *(leaf.copies for leaf in leaves)])
    if any(g is not None for g in combined[: len(params)]):
        return None
    own = [(leaf, g) for leaf, g in zip(leaves, combined[len(params) :], strict=True) if g is not None]
    if any(len(leaf.copies) != size for leaf, _ in own):
        return None
    J_BQn = term.values.new_zeros(size, u_BQ.shape[1], sum(param.numel() for param in params))
    parts = J_BQn.split([param.numel() for param in params], -1)
    for q in range(u_BQ.shape[1]):
        one = torch.zeros_like(u_BQ)
        one[:, q] = 1.0
        for (leaf, _), g in zip(own, _gradients(term, one, [leaf.copies for leaf, _ in own]), strict=True):
            if g is not None:
                parts[leaf.number][:, q] += g.reshape(size, -1)
    J_Mn, expected = J_BQn.flatten(0, 1), torch.zeros_like(J_BQn[0, 0])
    at = expected.split([param.numel() for param in params])
    for leaf, g in own:
        at[leaf.number].add_(g.sum(0).flatten())
    apart = (u_BQ.flatten() @ J_Mn - expected).norm()
    return J_Mn if bool(apart <= APART * expected.norm()) else None


def _one_by_one(term: Term, leaves: Sequence[Leaf], params: Sequence[Tensor]) -> Tensor:
    """The Jacobian of a term, a pass a residual."""
    J_Mn = term.values.new_zeros(term.values.numel(), sum(param.numel() for param in params))
    parts = J_Mn.split([param.numel() for param in params], -1)
    for m in range(len(J_Mn)):
        one = torch.zeros_like(term.values).flatten()
        one[m] = 1.0
        found = _gradients(term, one, [*params, *(leaf.copies for leaf in leaves)])
        for number, g in enumerate(found[: len(params)]):
            if g is not None:
                parts[number][m] += g.flatten()
        for leaf, g in zip(leaves, found[len(params) :], strict=True):
            if g is not None:
                parts[leaf.number][m] += g.sum(0).flatten()
    return J_Mn


def _gradients(term: Term, combination: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Of a combination of residuals in some tensors."""
    edges, signs = zip(*term.head.edges, strict=True)
    sent = [sign * combination.view(term.values.shape) for sign in signs]
    return torch.autograd.grad(edges, inputs, sent, retain_graph=True, allow_unused=True)

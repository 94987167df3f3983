"""How a parameter is seen as matrices: one, or a batch of them.

Of a parameter that no convolution holds the last two dimensions are a matrix, and those before them count matrices:
experts (E, d, h) are E of d x h. What `route={"split": ...}` says comes first.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_so.contract.block import Part
from lightning_so.core.plan.roles import SPLIT, Route, matching
from lightning_so.errors import ConfigError

#: Where one of the last two dimensions is shorter, they are taken for the kernel of a convolution of the user's own.
KERNEL = 8


@dataclass(frozen=True)
class View:
    """A parameter as matrices.

    Attributes:
        shape: Of the parameter.
        dim: The dimension that is the rows of a matrix; those before it count matrices.
        cuts: In how many equal matrices its rows are cut.
    """

    shape: torch.Size
    dim: int
    cuts: int = 1

    @property
    def count(self) -> int:
        """How many matrices."""
        return math.prod(self.shape[: self.dim]) * self.cuts

    @property
    def rows(self) -> int:
        """Rows of each."""
        return self.shape[self.dim] // self.cuts

    @property
    def cols(self) -> int:
        """Columns of each."""
        return math.prod(self.shape[self.dim + 1 :])

    @property
    def part(self) -> torch.Size:
        """Shape of what of the parameter is a matrix: all of it, where there is one."""
        return self.shape if self.count == 1 else torch.Size([self.rows, *self.shape[self.dim + 1 :]])

    def parts(self, name: str) -> Iterator[Part | None]:
        """The matrices in row-major order; of one that is the whole parameter, None.

        Args:
            name: Full name of the parameter.

        Yields:
            Where each is.
        """
        if self.count == 1:
            yield None
            return
        edges = [slice(n * self.rows, (n + 1) * self.rows) for n in range(self.cuts)] if self.cuts > 1 else [()]
        places = product(product(*map(range, self.shape[: self.dim])), edges)
        for index, (leading, edge) in enumerate(places):
            at = (*leading, edge) if isinstance(edge, slice) else leading
            yield Part(name, index, self.count, at, self.shape)

    def described(self, *, kernel: bool) -> str:
        """How a plan names it, where that does not go without saying; `kernel` as of `by_itself`."""
        if self.count > 1:
            return f", {self.count} matrices of {self.rows}x{self.cols}"
        if kernel or len(self.shape) < 3:
            return ""
        long = sum(length > 1 for length in self.shape)
        return f", one matrix of {self.rows}x{self.cols}" if long == 2 else ", as a kernel"


def kernels(model: nn.Module) -> set[Tensor]:
    """The parameters that convolutions hold, through parametrizations too."""
    return {param for module in model.modules() if isinstance(module, _ConvNd) for param in module.parameters()}


def rows_of(shape: torch.Size, *, kernel: bool) -> int:
    """The dimension of a parameter that is the rows of its matrices, if nothing else is said.

    Args:
        shape: Of the whole parameter.
        kernel: Whether a convolution holds it, so that all dimensions but the first are columns.

    Returns:
        The first of the last two dimensions, where there are more and each is a matrix; the first one, where there are
        not. Dimensions of one entry do not count.
    """
    long = [dim for dim, length in enumerate(shape) if length > 1]
    if kernel or len(shape) < 3 or len(long) < 2:
        return 0
    stacked = len(long) > 2 and min(shape[dim] for dim in long[-2:]) >= KERNEL
    return long[-2] if stacked else long[0]


def broadcast(shape: torch.Size, *, kernel: bool) -> bool:
    """Whether a parameter is added to every sample of a batch, as the positions (1, T, d) of a vision Transformer."""
    return not kernel and len(shape) > 2 and shape[0] == 1


def split(name: str, shape: torch.Size, count: int, *, kernel: bool) -> View:
    """A parameter as so many matrices, cut along its leading dimensions.

    Args:
        name: Full name of the parameter.
        shape: Its shape.
        count: How many matrices; 1 folds all dimensions but the first into columns.
        kernel: As of `rows_of`.

    Returns:
        The view.

    Raises:
        ConfigError: If it cannot be cut so.
    """
    own = View(shape, rows_of(shape, kernel=kernel))
    what = f"route={{'split': {{{name!r}: {count}}}}}: {name} has the shape {'x'.join(map(str, shape)) or 'scalar'}"
    if len(shape) < 2:
        raise ConfigError(f"{what}, which is no matrix: narrow the glob, such as '*.qkv.weight'.")
    if count == 1:
        if own.count == 1:
            raise ConfigError(f"{what} and is one matrix already: leave it out, or give 2 or more.")
        return View(shape, next(dim for dim, length in enumerate(shape) if length > 1))
    if count % own.count:
        raise ConfigError(
            f"{what}, {own.count} matrices of {own.rows}x{own.cols}: give a multiple of {own.count}, which cuts the "
            f"rows of each, or 1, which folds all into one matrix of {shape[0]} rows."
        )
    left, dim = count, 0
    while left > 1 and dim < len(shape) and left % shape[dim] == 0:
        left //= shape[dim]
        dim += 1
    while left == 1 and dim < len(shape) - 1 and shape[dim] == 1:
        dim += 1
    if left > 1 and (dim == len(shape) or shape[dim] % left):
        raise ConfigError(
            f"{what}, whose rows do not divide into {count} equal parts: give a number that divides them."
        )
    found = View(shape, dim, left) if dim < len(shape) else own
    if dim == len(shape) or min(found.rows, found.cols) < 2:
        raise ConfigError(
            f"{what}, whose {count} parts are single rows or columns, no matrices: give a smaller number."
        )
    return found


def counts(route: Route | None, names: list[str]) -> dict[str, int]:
    """By name, how many matrices parameters are split into; of two globs that match, the later one says.

    Args:
        route: What the user says; its "split" is globs -> counts.
        names: Those of the model's parameters.

    Returns:
        The numbers.

    Raises:
        ConfigError: If what is given are no counts, or a glob matches no parameter.
    """
    given, found = (route or {}).get(SPLIT, {}), dict[str, int]()
    if not isinstance(given, Mapping):
        raise ConfigError(f"route={{'split': {given!r}}}: give globs and counts, such as {{'*.qkv.weight': 3}}.")
    for glob, count in given.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(
                f"route={{'split': {{{glob!r}: {count!r}}}}}: the number of matrices must be an integer, 2 or more; or "
                "1, which folds a parameter of three dimensions into one matrix."
            )
        found.update(dict.fromkeys(matching(f"route={{'split': {{{glob!r}: {count}}}}}", glob, names), count))
    return found

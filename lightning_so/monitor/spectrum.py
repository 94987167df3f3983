"""The spectrum of a loss's Hessian, of a model as it is: a finished checkpoint, or between two steps."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_so.errors import ConfigError, check_choice, check_count
from lightning_so.linalg.hutchinson import Trace, trace
from lightning_so.linalg.lanczos import Density, Product, density
from lightning_so.linalg.precision import Unrounded
from lightning_so.linalg.products import PRODUCTS, STEPS, FiniteDifference
from lightning_so.probe.double_backward import exact, way_out
from lightning_so.probe.parameters import ParameterVector
from lightning_so.probe.scalar import scalar
from lightning_so.probe.side_effects import random_state, set_random_state, undone


@dataclass(frozen=True)
class Spectrum:
    """What is known of the eigenvalues of a Hessian.

    Attributes:
        top: The largest eigenvalue that was found.
        bottom: The smallest.
        trace: The trace, with its standard error.
        density: The spectral density.
        product: How products were taken, and why.
        names: The parameters.
    """

    top: float
    bottom: float
    trace: Trace
    density: Density
    product: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        """In one line."""
        return (
            f"eigenvalues of {self.density.dimension} parameters from {self.bottom:.4g} to {self.top:.4g}, trace "
            f"{self.trace.mean:.4g} +- {self.trace.error:.2g}, {100 * self.density.negative():.1f} % negative; "
            f"products {self.product}"
        )


def spectrum(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    params: Iterable[str] | None = None,
    steps: int = 30,
    probes: int = 8,
    seed: int = 0,
    product: str = "auto",
) -> Spectrum:
    """Extreme eigenvalues, trace and spectral density of the Hessian of a loss.

    Nothing of the model changes: weights, gradients, buffers and random numbers are put back. Several ranks call it
    together, each with the loss of its own data, whose mean it is about; of DDP pass the wrapped model.

    Args:
        model: The model as it is wrapped.
        loss: Computes the loss: the same batch at every call.
        params: Names of the parameters that it is about, for the Hessian of a layer; all that are trained by default.
        steps: Lanczos steps a probe.
        probes: Random vectors; each costs `steps + 1` products.
        seed: Of the probes.
        product: "exact" (by double backward), "difference" (central), or "auto": exact where that exists.

    Returns:
        The spectrum.

    Raises:
        ConfigError: If the loss is no scalar of the parameters, a name is none of them, or a product is asked for that
            cannot be taken.

    Example:
        >>> import torch
        >>> w = nn.Linear(2, 1, bias=False).double()
        >>> found = spectrum(w, lambda: (w.weight * torch.tensor([[1.0, 3.0]])).square().sum())
        >>> round(found.top, 6), round(found.bottom, 6)
        (18.0, 2.0)
    """
    check_choice("spectrum", "product", product, PRODUCTS)
    check_count("spectrum", "steps", steps, 1, 10_000)
    check_count("spectrum", "probes", probes, 1, 100_000)
    vector = ParameterVector.of(_chosen(model, params), model)
    state = random_state()

    def repeated() -> Tensor:
        set_random_state(state)
        return scalar(loss(), "spectrum", "Give a function that returns one.")

    try:
        with undone(model, list(model.parameters())), Unrounded():
            how, why = _product(vector, model, repeated, product)
            found = density(how, vector.space, steps=min(steps, vector.space.dimension), probes=probes, seed=seed)
            traces = trace(how, vector.space, probes=probes, seed=seed)
    finally:
        vector.comm.close()
    if not len(found.values):
        raise ConfigError(
            "spectrum: no product was finite: the loss is not smooth here, or overflows at these weights."
        )
    bottom, top = found.ends()
    return Spectrum(top, bottom, traces, found, why, tuple(piece.name for piece in vector.space.pieces))


def _chosen(model: nn.Module, params: Iterable[str] | None) -> list[tuple[str, Tensor]]:
    """Names and parameters."""
    named = dict((model.module if isinstance(model, DistributedDataParallel) else model).named_parameters())
    if params is None:
        return list(named.items())
    wanted = list(params)
    if unknown := [name for name in wanted if name not in named]:
        raise ConfigError(
            f"spectrum: {unknown[:5]} are no parameters of {type(model).__name__}, which has {list(named)[:10]}."
        )
    return [(name, named[name]) for name in wanted]


def _product(vector: ParameterVector, model: nn.Module, loss: Callable[[], Tensor], asked: str) -> tuple[Product, str]:
    """How products are taken, and why."""
    why = "as asked"
    if asked != "difference":
        found = exact(vector, model, loss)
        if not isinstance(found, str):
            return found, f"by double backward, {'which works here' if asked == 'auto' else why}"
        if asked == "exact":
            raise ConfigError(f"spectrum: {way_out(found)}")
        why = found
    step = STEPS[vector.space.dtype]
    return FiniteDifference(
        vector.weights, partial(vector.gradient, loss), vector.space, step, True
    ), f"by central differences: {why}"

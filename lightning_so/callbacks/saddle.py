"""A way off saddle points: on a plateau, along the most negative curvature."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.callbacks import strategies
from lightning_so.callbacks.probing import CurvatureProbe
from lightning_so.callbacks.signals import inside_handler
from lightning_so.contract.vector_method import CURVATURES
from lightning_so.errors import ConfigError, check_choice, check_count, check_range
from lightning_so.linalg.lanczos import lanczos
from lightning_so.linalg.line import Point, downhill
from lightning_so.linalg.products import BlockProduct, FiniteDifference, move, moved
from lightning_so.probe.difference import ProductChoice

#: The first distance tried is at least this share of the length of the weights: on a saddle the model says 0.
SHARE = 1e-3
#: The random part of Lanczos' start, beside the gradient: on a ridge the gradient is across what leads off it.
RANDOM = 0.1
#: A curvature is negative if it is below zero by this share of the largest: what differences of gradients resolve.
CLEAR, CLEAR_HALF = 1e-3, 0.1
#: Losses below this share of the largest mean so far do not tell a plateau from a loss that falls to zero.
FLOOR = 1e-3
#: What survives a checkpoint besides the sums of the window.
KEPT = ("escapes", "evaluations", "unfit", "_peak", "_wait", "_left")


@dataclass(frozen=True)
class Escape:
    """What a look on a plateau has found, and done.

    Attributes:
        curvature: The most negative curvature that was found, `v'H v`.
        modelled: `|<g, v>| / |curvature|`: how far behind the model's ridge is along v.
        distance: How far the weights have moved along v; 0 if they have not.
        gain: By how much this has lowered the loss of the micro-batch.
    """

    curvature: float
    modelled: float = 0.0
    distance: float = 0.0
    gain: float = 0.0


class SaddleEscape(CurvatureProbe):
    """Leave saddle points; where the loss falls, or no curvature is negative, nothing changes, bit for bit.

    Every so many steps the mean training losses of the two halves of these steps are compared. On a plateau Lanczos
    looks for the most negative curvature of the last micro-batch's loss, from its gradient and a little of a random
    vector: near a saddle the gradient is what is left in directions of small and negative curvature. If one is clearly
    negative, the weights move along it, downhill: first by `|<g, v>| / |lambda|`, then four times as far each time
    while the loss falls and the slope gets steeper, measured by the gradient of the same batch; past a minimum, back to
    it. The optimizer's state is left alone. Each look in vain doubles the wait for the next, until the loss moves.

    Works with any optimizer whose parameters are all it keeps of the weights, with and without `SecondOrder`, in one
    process, under DDP, FSDP2 and FSDP1. Logged at looks are `curv/lambda_min`, `curv/escape_distance` and
    `curv/escapes`. The curvature and the line are those of one micro-batch: in small ones they are mostly its noise.

    Attributes:
        escapes: How often the weights have been moved.
        evaluations: Gradients that all looks have cost.
        unfit: Looks at which a number was not finite, so that nothing moved.
        last: What was found last; None before.

    Args:
        every: Steps between two comparisons.
        products: Products a look; each costs about a forward and backward pass.
        flat: The relative change of the mean loss, from half to half, up to which it is a plateau.
        curvature: "measured", or "constant": along Lanczos' start instead, to see what the direction is worth.
        verbose: Print at the first look how products are taken, and why.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> SaddleEscape(every=20).escapes
        0
    """

    def __init__(
        self,
        every: int = 50,
        products: int = 16,
        flat: float = 1e-2,
        curvature: str = "measured",
        verbose: bool = True,
    ) -> None:
        """Check the arguments."""
        super().__init__(every, verbose, "difference")
        check_count("SaddleEscape", "every", every, 2, 1_000_000_000)
        check_count("SaddleEscape", "products", products, 1, 1000)
        check_range("SaddleEscape", "flat", flat, 0.0, 1.0)
        check_choice("SaddleEscape", "curvature", curvature, CURVATURES)
        self.products, self.flat, self.curvature = products, flat, curvature
        self.escapes, self.unfit = 0, 0
        self.last: Escape | None = None
        self._peak, self._wait, self._left = 0.0, 0, 0
        self._half = 0
        # Of each half: the sum of the losses, and how many they are.
        self._sums: Tensor = torch.zeros(2, 2, dtype=torch.float64)
        self._absent: list[bool] = []
        self._forget()

    # ---------------------------------------------------------------- when

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be moved."""
        super().setup(trainer, pl_module, stage)
        if self._read:  # by a run that ended before it used it
            self._forget()
        if stage == "fit" and strategies.is_deepspeed(trainer.strategy):
            raise ConfigError(
                "SaddleEscape: DeepSpeed keeps the weights that it steps on apart from those of the forward pass, and "
                "only these could be moved. Use strategy='ddp', or ModelParallelStrategy (FSDP2) for large models."
            )

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin a window, or go on with that of a checkpoint."""
        super().on_train_start(trainer, pl_module)
        self._take()

    def _take(self) -> None:
        """Begin a window, or go on with that of a state that was read."""
        self._sums = torch.zeros(2, 2, dtype=torch.float64, device=self.vector.space.device)
        if self._loaded is not None:
            for name in KEPT:
                setattr(self, name, self._loaded[name])
            how = self._loaded["examined"]
            self._examined = None if how is None else ProductChoice(**how)
            if self.vector.comm.rank == 0:  # They are sums over ranks.
                self._sums += self._sums.new_tensor(self._loaded["sums"])
        self._forget()

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """See `CurvatureProbe.teardown`; what another stage than fit has read is forgotten."""
        super().teardown(trainer, pl_module, stage)
        if stage != "fit":
            self._forget()

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        """Know in which half of the window this micro-batch is: afterwards the step may have been counted."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._half = int(2 * (trainer.global_step % self.every) >= self.every)

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Optimizer) -> None:
        """Know which parameters have no gradient, if this step may be looked at: they stay where they are."""
        if self._random is not None:
            self._absent = [self.vector.access.grad(param) is None for param in self.vector.params]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the loss to the window; look, where it ends."""
        loss = None if outputs is None else outputs.get("loss")
        if loss is not None:  # Lightning has divided it for accumulation, in both halves alike.
            self._sums[self._half, 0] += loss
            self._sums[self._half, 1] += 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def wants(self, trainer: Any) -> bool:
        """See `CurvatureProbe.wants`: on a plateau; less and less often if nothing is found."""
        if not self._plateau():
            self._wait = self._left = 0
        elif self._left:
            self._left -= 1
        else:
            return True
        return False

    def _plateau(self) -> bool:
        """Whether the losses of the two halves are the same; begins a new window."""
        (before, several), (after, more) = self._over_ranks()
        self._sums.zero_()
        if not (several and more):
            return False
        before, after = before / several, after / more
        change = abs(after - before)
        if not change < float("inf"):
            return False
        self._peak = max(self._peak, abs(before), abs(after))
        return change <= self.flat * max(abs(before), FLOOR * self._peak)

    def _over_ranks(self) -> list[list[float]]:
        total = self._sums.clone()
        self.vector.comm.sum(total)
        return total.tolist()

    # ---------------------------------------------------------------- where, and how far

    def look(self, trainer: Any, product: BlockProduct, gradient: Tensor) -> None:
        """See `CurvatureProbe.look`: find a direction, go along it."""
        assert isinstance(product, FiniteDifference)
        space, trained = self.vector.space, self._trained(trainer)
        # Twice the wait, unless this look finds a way.
        self._left = self._wait = 2 * self._wait + 1
        g, start = trained * gradient, trained * space.normal(trainer.global_step)
        if length := space.norm(g):
            start = g / length + RANDOM / space.norm(start) * start
        found = lanczos(lambda v: trained * product(v), start, self.products, space)
        if not found.ok or not len(found.diagonal):
            self.unfit += 1
            return
        values, v = found.ritz()[0].tolist(), found.vector(0)
        if self.curvature == "constant":
            values[0], v = -max(map(abs, values)), start / space.norm(start)
        # Downhill; where it is level, the side of the start.
        v = -v if (space.dot(g, v) or -space.dot(start, v)) > 0 else v
        # It is v'H v, whatever the bound of its distance to an eigenvalue: the lowest of these is as low or lower.
        curvature, clear = values[0], CLEAR_HALF if self.half(trainer) else CLEAR
        self.last = Escape(curvature)
        if curvature < -clear * max(map(abs, values)):
            self.last = self._go(product, v, space.dot(g, v), curvature)
        scalars = {"lambda_min": curvature, "escape_distance": self.last.distance, "escapes": float(self.escapes)}
        self.tell(trainer, {f"curv/{name}": value for name, value in scalars.items()})

    def _go(self, product: FiniteDifference, v: Tensor, slope: float, curvature: float) -> Escape:
        """Move along v, as far as it goes down."""
        space, weights = self.vector.space, self.vector.weights
        parts = space.split(v)

        def at(distance: float) -> Point:
            with moved(weights, parts, distance):
                there = space.dot(product.gradient(), v)
            return Point(distance, self.losses()[1], there)

        modelled, here = abs(slope / curvature), Point(0.0, self.losses()[0], slope)
        length = space.norm(torch.cat([weight.detach().reshape(-1).to(v) for weight in weights]))
        reached = downhill(at, here, max(modelled, SHARE * (length + 1e-3)))
        if reached is None:
            self.unfit += 1
        elif reached.distance:
            move(weights, parts, reached.distance)
            self.escapes += 1
            self._left = self._wait = 0
            return Escape(curvature, modelled, reached.distance, here.loss - reached.loss)
        return Escape(curvature, modelled)

    def _trained(self, trainer: Any) -> Tensor:
        """Ones for what an optimizer has stepped on, at a rate above zero; else zeros: a vector of the space."""
        rates = {
            param: float(group["lr"])
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
            for param in group["params"]
        }
        space = self.vector.space
        parts = [torch.empty(0, dtype=space.dtype, device=space.device)]
        for param, piece, absent in zip(self.vector.params, space.pieces, self._absent, strict=True):
            parts.append(parts[0].new_full((piece.count,), float(rates.get(param, 0.0) > 0 and not absent)))
        return torch.cat(parts)

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The window and the counts; a collective while a fit runs, as saving is."""
        if self._loaded is not None:
            return self._loaded
        # Inside a signal's handler no rank may begin an exchange: the window then begins anew.
        sums = [[0.0, 0.0], [0.0, 0.0]]
        if self._vector is not None and not inside_handler():
            sums = self._over_ranks()
        how = None if self._examined is None else dict(vars(self._examined))
        return {"sums": sums, "examined": how, **{name: getattr(self, name) for name in KEPT}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep it until training starts; while it runs, go on from it."""
        self._loaded = state
        if self._vector is not None:
            self._take()

    def on_load_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Note that a Trainer reads a state, for its own run."""
        self._read = True

    def _forget(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._read = False

"""What callbacks share that look at the loss's curvature every so many steps, between two steps of the optimizer."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor, nn

from lightning_so.callbacks import strategies
from lightning_so.callbacks.names import Callback
from lightning_so.callbacks.replay import Replay
from lightning_so.errors import ConfigError, check_choice, check_count
from lightning_so.linalg.precision import Unrounded
from lightning_so.linalg.products import PRODUCTS, BlockProduct, FiniteDifference
from lightning_so.probe.difference import ProductChoice, choose_product
from lightning_so.probe.double_backward import exact, way_out
from lightning_so.probe.parameters import ParameterVector
from lightning_so.probe.side_effects import random_state


class CurvatureProbe(Callback, ABC):
    """Looks at the last micro-batch's loss right after every so many steps of the optimizer; see `wants` and `look`.

    Attributes:
        evaluations: Gradients that all looks have cost.

    Args:
        every: Steps between two looks.
        verbose: Print at the first look how products are taken, and why.
        product: One of `PRODUCTS`: "auto" takes double backward where it exists, else differences.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(self, every: int, verbose: bool, product: str) -> None:
        """Check the arguments."""
        self._name = type(self).__name__
        check_count(self._name, "every", every, 1, 1_000_000_000)
        check_choice(self._name, "product", product, PRODUCTS)
        self.every, self.verbose, self.product, self.evaluations = every, verbose, product, 0
        self._clear()

    def _clear(self) -> None:
        self._vector: ParameterVector | None = None
        self._replay: Replay | None = None
        self._exact: bool | None = None
        self._examined: ProductChoice | None = None
        self._loss: Tensor | None = None
        self._random: tuple[Any, ...] | None = None
        self._looked = -1

    @property
    def vector(self) -> ParameterVector:
        """The parameters as one vector, while a fit runs."""
        assert self._vector is not None
        return self._vector

    def wants(self, trainer: Any) -> bool:
        """Whether to look at this step, the same on every rank; asked every so many steps, before anything is computed.

        Args:
            trainer: The Trainer.

        Returns:
            Whether.
        """
        return True

    @abstractmethod
    def look(self, trainer: Any, product: BlockProduct, gradient: Tensor) -> None:
        """Look.

        Args:
            trainer: The Trainer.
            product: `v -> H v` over `vector.space`; a `FiniteDifference` where differences were asked for.
            gradient: g at the weights.
        """

    def losses(self) -> tuple[float, float]:
        """The losses at the weights and where the last gradient was taken, means over ranks: an exchange."""
        assert self._replay is not None
        assert self._loss is not None
        assert self._replay.loss is not None
        total = torch.stack([loss.double().reshape(()) for loss in (self._loss, self._replay.loss)])
        self.vector.comm.sum(total)
        here, there = (total / self.vector.comm.ranks).tolist()
        return here, there

    def half(self, trainer: Any) -> bool:
        """Whether gradients are of half precision."""
        return strategies.half(trainer, self.vector.weights)

    def tell(self, trainer: Any, values: dict[str, float]) -> None:
        """Give scalars to the Trainer's loggers, at this step."""
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be looked at."""
        if stage == "fit" and not pl_module.automatic_optimization:
            raise ConfigError(
                f"{self._name}: with manual optimization training_step steps the optimizers itself, and cannot be run "
                "again to look. Use lightning_so.linalg.lanczos with a loss of your own."
            )

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Say what the whole vector is: the parameters that are trained."""
        strategies.optimizers(trainer, self._name)
        self._clear()
        self._begin(trainer, pl_module)

    def _begin(self, trainer: Any, pl_module: nn.Module) -> None:
        self._vector = ParameterVector.of(
            pl_module.named_parameters(), trainer.strategy.model, strategies.deepspeed_engine(trainer)
        )
        self._replay = Replay(trainer, pl_module, self._vector)

    def _follow(self, trainer: Any, pl_module: nn.Module) -> None:
        """Look at the parameters that are trained now, where tensors were replaced, frozen or thawed: a collective."""
        params = [param for param in pl_module.parameters() if param.requires_grad]
        if len(params) != len(self.vector.params) or not all(map(is_, params, self.vector.params)):
            self.vector.comm.close()
            self._exact = None
            self._begin(trainer, pl_module)

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Give back what was set up."""
        if self._vector is not None:
            self._vector.comm.close()
        self._clear()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """The same: callbacks are not asked to tear down then."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        """Remember the random numbers of a step that will be looked at."""
        self._random = random_state() if (trainer.global_step + 1) % self.every == 0 else None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look, once the optimizer has stepped."""
        step = trainer.global_step
        if step % self.every or step == self._looked or self._random is None or self._replay is None:
            return
        self._looked = step
        self._follow(trainer, pl_module)
        if not self.wants(trainer):
            return
        recorders = [recorder for engine in strategies.engines(trainer) for recorder in engine.recorders]
        with self._replay.of(batch, batch_idx, self._random, recorders) as loss, Unrounded():
            self.look(trainer, *(self._by_double_backward(trainer, loss) or self._by_differences(trainer, loss)))

    def _by_double_backward(self, trainer: Any, loss: Callable[[], Tensor]) -> tuple[BlockProduct, Tensor] | None:
        """Products and the gradient; None where there are no such products, or others are asked for."""
        if self.product == "difference" or self._exact is False:
            return None
        first = self._exact is None
        found = exact(self.vector, trainer.strategy.model, loss, probe=first)
        if isinstance(found, str):
            self._exact = False
            if self.product == "exact":
                raise ConfigError(f"{self._name}: {way_out(found)}")
            self._say(f"no double backward here ({found}).")
            return None
        if first and found.compared:
            self._exact = True
            self._say(f"products by double backward, every {self.every} steps.")
        return found, found.gradient

    def _by_differences(self, trainer: Any, loss: Callable[[], Tensor]) -> tuple[BlockProduct, Tensor]:
        """Products and the gradient."""
        assert self._replay is not None

        def gradient() -> Tensor:
            self.evaluations += 1
            return self.vector.gradient(loss)

        here = gradient()
        self._loss = self._replay.loss
        how = self._examined
        if how is None:
            how = choose_product(self._name, self.vector, gradient, here, self.half(trainer))
            if how.sure:
                self._examined = how
                self._say(f"{how}, every {self.every} steps.")
        return FiniteDifference(self.vector.weights, gradient, self.vector.space, how.step, how.central, here), here

    def _say(self, what: str) -> None:
        if self.verbose:
            rank_zero_only(print)(f"{self._name}: {what}")

"""A learning rate that the measured curvature bears."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_so.callbacks import strategies
from lightning_so.callbacks.probing import CurvatureProbe
from lightning_so.callbacks.second_order import SecondOrder
from lightning_so.contract.vector_method import CURVATURES
from lightning_so.errors import ConfigError, check_choice, check_range
from lightning_so.linalg.products import BlockProduct

#: Products of the first look, which starts from a random direction; later ones go on from the last.
FIRST = 8
#: What is left of the last top curvature where less is seen now.
MEMORY = 0.7
#: Before torch 2.6 the second was none of the first.
ADAM = (Adam, AdamW)


class SharpnessGuard(CurvatureProbe):
    """Cap the learning rate by the top curvature of the preconditioned Hessian; below the cap nothing changes.

        l = top eigenvalue of P^-1/2 H P^-1/2,   P = sqrt(v) + eps of Adam, the identity of SGD
        lr <- min(lr, safety * limit / l)
        limit = (2 + 2 b1) / (1 - b1) of Adam, 2 (1 + momentum) of SGD: steps beyond it grow along that direction

    One step of power iteration a look, from where the last one was; of a sharpness that falls, at least .7 of the last.
    A guard against rates that are several times too large, not a schedule: it cannot make a good rate better, and an
    explosion between two looks is not seen. Logged are `curv/preconditioned_max` and `curv/lr_cap`.

    Source: the limits: Cohen et al. 2021, arXiv 2103.00065; 2022, arXiv 2207.14484, equation 5.

    Attributes:
        cap: The largest rate that is let through; infinite before the first look.
        capped: Steps whose rate was capped.

    Args:
        every: Steps between two looks; each costs about a forward and backward pass.
        safety: The share of the limit that is used.
        curvature: "measured", or "constant": what was seen first for good, to see what measuring is worth.
        verbose: Print at the first look how products are taken, and why.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> SharpnessGuard(safety=0.5).cap
        inf
    """

    def __init__(self, every: int = 10, safety: float = 1.0, curvature: str = "measured", verbose: bool = True) -> None:
        """Check the arguments."""
        super().__init__(every, verbose, "difference")
        check_range("SharpnessGuard", "safety", safety, 0.01, 10.0)
        check_choice("SharpnessGuard", "curvature", curvature, CURVATURES)
        self.safety, self.curvature, self.capped = safety, curvature, 0
        self._forget()

    def _forget(self) -> None:
        self.cap = float("inf")
        self._top = 0.0
        self._v: Tensor | None = None
        self._asked: list[tuple[dict[str, Any], Any]] = []
        self._handle: Any = None
        self._calls = 0

    # ---------------------------------------------------------------- start and end

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be guarded."""
        super().setup(trainer, pl_module, stage)
        if any(isinstance(callback, SecondOrder) for callback in trainer.callbacks):
            raise ConfigError(
                "SharpnessGuard beside SecondOrder: the preconditioner is then another than the optimizer's second "
                "moments. Use one of the two; CurvatureMonitor goes with both."
            )

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """See whether the optimizer's limit is known."""
        super().on_train_start(trainer, pl_module)
        self._forget()
        optimizers = strategies.optimizers(trainer, "SharpnessGuard")
        if len(optimizers) != 1 or not isinstance(optimizers[0], (*ADAM, SGD)):
            names = ", ".join(type(optimizer).__name__ for optimizer in optimizers)
            raise ConfigError(
                f"SharpnessGuard knows the limits of one Adam, AdamW or SGD, and configure_optimizers gave {names}: "
                "use one of these, or CurvatureMonitor, which goes with any."
            )
        self._handle = optimizers[0].register_step_post_hook(self._stepped)

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Give back what was set up."""
        super().teardown(trainer, pl_module, stage)
        self._restore()
        if self._handle is not None:
            self._handle.remove()
        self._forget()

    # ---------------------------------------------------------------- one step

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Optimizer) -> None:
        """Let through at most the cap, for this step: schedulers and loggers see the rate that was asked for."""
        if not strategies.steps_now(trainer):
            return
        self._restore()
        groups = [group for group in strategies.client(optimizer).param_groups if float(group["lr"]) > self.cap]
        for group in groups:
            rate = group["lr"]
            self._asked.append((group, rate))
            group["lr"] = torch.full_like(rate, self.cap) if isinstance(rate, Tensor) else self.cap
        self.capped += bool(groups)

    def _stepped(self, *_: Any) -> None:
        self._calls += 1
        # DeepSpeed calls the optimizer several times a step.
        if self._calls >= len(self.vector.access.calls() or [()]):
            self._restore()

    def _restore(self) -> None:
        self._calls = 0
        while self._asked:
            group, rate = self._asked.pop()
            group["lr"] = rate

    def look(self, trainer: Any, product: BlockProduct, gradient: Tensor) -> None:
        """See `CurvatureProbe.look`: power iteration with the preconditioned Hessian."""
        optimizer = strategies.client(trainer.optimizers[0])
        root, space = self._root(optimizer), self.vector.space
        v = space.normal(0) if self._v is None else self._v
        for _ in range(FIRST if self._v is None else 1):
            u = root * product(root * v)
            products = space.gram(torch.stack([v, u]), torch.stack([v, u]))
            top, length = float(products[0, 1] / products[0, 0]), float(products[1, 1]) ** 0.5
            if not 0 < length < float("inf"):
                return  # Not finite, or no curvature at all: the last cap stays.
            v = u / length
        if self.curvature == "constant" and self._top:
            top = self._top
        self._v, self._top = v, max(top, MEMORY * self._top)
        self.cap = self.safety * self._limit(optimizer) / self._top if self._top > 0 else float("inf")
        self.tell(trainer, {"curv/preconditioned_max": self._top, "curv/lr_cap": self.cap})

    def _limit(self, optimizer: Optimizer) -> float:
        """The smallest limit of the groups."""
        if isinstance(optimizer, ADAM):
            betas = [float(group["betas"][0]) for group in optimizer.param_groups]
            return min((2 + 2 * beta) / (1 - beta) for beta in betas)
        return min(2 * (1 + float(group["momentum"])) for group in optimizer.param_groups)

    def _root(self, optimizer: Optimizer) -> Tensor:
        """`P^-1/2`, a vector of the space."""
        vector = self.vector
        group_of = {param: group for group in vector.access.groups(optimizer) for param in group["params"]}
        parts = [torch.empty(0, dtype=vector.space.dtype, device=vector.space.device)]
        for param, weight in zip(vector.params, vector.weights, strict=True):
            state, group = vector.access.state(optimizer, param), group_of.get(param)
            if group is None or not isinstance(optimizer, ADAM):
                parts.append(parts[0].new_full((weight.numel(),), float(group is not None)))
                continue
            # Without a state it has had no gradient: it does not move.
            if "exp_avg_sq" not in state:
                parts.append(parts[0].new_zeros(weight.numel()))
                continue
            v = state["exp_avg_sq"].reshape(-1).to(parts[0]) / (1 - float(group["betas"][1]) ** float(state["step"]))
            parts.append((v.sqrt() + float(group["eps"])).rsqrt())
        return torch.cat(parts)

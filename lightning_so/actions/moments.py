"""The optimizer registry: what the engine must know of a base optimizer to run it in another basis or to bend it.

An optimizer is known by the names of its state: its *first moments* are linear in the gradient (carried exactly when a
basis changes), its *second moments* are elementwise squares (permuted). A subclass that inherits `step` counts as its
parent.
"""

from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from lightning_so.errors import UnusableError


@dataclass(frozen=True)
class Base:
    """How one optimizer class keeps its moments and its weight decay.

    Attributes:
        first: State keys linear in the gradient; the first of them is what *bend* orthogonalises.
        second: State keys that are elementwise second moments.
        decay: "coupled" (joins the gradient), "decoupled" (scales the weight), or "flag" (decoupled where
            the param group's `decoupled_weight_decay` is true).
        linear: Whether the update is linear in the gradient: rotating such a base changes nothing.
        nesterov: Group key of the look-ahead weight beta1 of an EMA ("betas"), or "momentum" for a running sum.
        moving: Group key that must be non-zero for the first moment to exist, or None if it always does.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    decay: str
    linear: bool = False
    nesterov: str | None = "betas"
    moving: str | None = None

    def has_first_moment(self, group: dict) -> bool:
        """Whether this param group keeps a first moment that *bend* can use."""
        return bool(self.first) and (self.moving is None or group[self.moving] != 0)

    def moments(self, group: dict) -> int:
        """How many moments it keeps of a parameter of this param group, one of each kind."""
        return self.has_first_moment(group) + bool(self.second)

    def decoupled(self, group: dict) -> bool:
        """Whether this group's decay scales the weight instead of joining the gradient."""
        return self.decay == "decoupled" or (self.decay == "flag" and bool(group.get("decoupled_weight_decay")))

    def least_variance(self, group: dict) -> float:
        """The least that v / m^2 can be when m and v are the moving averages of one sequence of gradients.

        `(1 - b2) (1 - b1^2 / b2) / (1 - b1)^2`, by the inequality of Cauchy and Schwarz over the weights of the two
        averages; 0 where there is no bound (b1^2 >= b2) or the averages are others.

        Args:
            group: The param group.

        Returns:
            The ratio.
        """
        if self.nesterov != "betas":
            return 0.0
        first, second = (float(beta) for beta in group["betas"])
        if not 0 <= first * first < second:
            return 0.0
        return (1 - second) * (1 - first * first / second) / (1 - first) ** 2

    def lookahead(self, group: dict) -> tuple[float, float]:
        """Weights (a, b) of the look-ahead first moment `a m + b g` (Nesterov's form), g as the base saw it.

        `b1 m + (1 - b1) g` for an EMA and `mu buf + g` for SGD's running sum; under `maximize` the base has stored the
        moment of -g, so g is negated first. A buffer of normalised gradients (RMSprop) has no such form: (1, 0).

        Args:
            group: The param group.

        Returns:
            (a, b).
        """
        sign = -1.0 if group.get("maximize") else 1.0
        if self.nesterov == "betas":
            beta = float(group["betas"][0])
            return beta, sign * (1 - beta)
        if self.nesterov == "momentum":
            return float(group["momentum"]), sign
        return 1.0, 0.0


_ADAM_FIRST, _ADAM_SECOND = ("exp_avg",), ("exp_avg_sq", "max_exp_avg_sq")
_KNOWN: dict[type[Optimizer], Base] = {
    torch.optim.AdamW: Base(_ADAM_FIRST, _ADAM_SECOND, "decoupled"),
    torch.optim.Adam: Base(_ADAM_FIRST, _ADAM_SECOND, "flag"),
    torch.optim.NAdam: Base(_ADAM_FIRST, _ADAM_SECOND, "flag"),
    torch.optim.RAdam: Base(_ADAM_FIRST, _ADAM_SECOND, "flag"),
    torch.optim.RMSprop: Base(
        ("momentum_buffer", "grad_avg"), ("square_avg",), "coupled", nesterov=None, moving="momentum"
    ),
    torch.optim.Adagrad: Base((), ("sum",), "coupled", nesterov=None),
    torch.optim.SGD: Base(("momentum_buffer",), (), "coupled", linear=True, nesterov="momentum", moving="momentum"),
}


def register(optimizer: type[Optimizer], base: Base) -> None:
    """Make an optimizer class known; it must not read the parameter and must call its closure once.

    Args:
        optimizer: The class.
        base: Its moments and decay.
    """
    _KNOWN[optimizer] = base


def lookup(optimizer: Optimizer) -> Base:
    """Find what is known of an optimizer.

    Args:
        optimizer: The base optimizer.

    Returns:
        The entry of its class, or of the nearest parent whose `step` it inherits.

    Raises:
        UnusableError: If neither is registered.
    """
    for cls in type(optimizer).__mro__:
        if cls in _KNOWN:
            # AdamW derives from Adam without a step of its own: compare the functions, not the classes.
            if type(optimizer).step is cls.step:
                return _KNOWN[cls]
            break
    known = ", ".join(sorted(c.__name__ for c in _KNOWN))
    raise UnusableError(
        f"optimizer {type(optimizer).__name__} is not in the registry, so its moments cannot be rotated or bent. "
        f"Known: {known}, and subclasses that inherit `step`. Use one of these, or describe it with "
        f"`lightning_so.actions.moments.register(...)` if it is elementwise, never reads the parameter and calls its "
        f"closure once (LAMB, LARS, Adafactor, Prodigy, schedule-free and LBFGS do not qualify)."
    )

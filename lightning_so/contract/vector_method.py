"""The contract of a method on the whole parameter vector: the base has stepped, and the method says what is taken."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from lightning_so.linalg.least_squares import Residuals
from lightning_so.linalg.vectors import Space

#: Where the curvature is from: the loss, or nowhere, to see what it is worth.
CURVATURES = ("measured", "constant")


#: Of what it is: of the predictions' losses alone, which is never negative, or of all.
MATRICES = ("gauss-newton", "hessian")


#: What of a step is the method's own.
Owned = Literal["nothing", "moments", "step"]


def adaptive(group: dict) -> bool:
    """Whether an optimizer's param group is of one that divides by moments of its own: Adam, RMSprop, Adagrad."""
    return "betas" in group or "alpha" in group or "lr_decay" in group


class Oracle(ABC):
    """The loss of one step's last micro-batch around the weights before the step: same numbers at every call."""

    @property
    @abstractmethod
    def here(self) -> Tensor:
        """Its gradient at the weights, shape (n,)."""

    @abstractmethod
    def at(self, displacement: Tensor) -> Tensor:
        """Its gradient beside them, shape (n,); one evaluation."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Products that take the time of one: where each rank probes a direction of its own, as many as ranks."""

    @abstractmethod
    def products(self, vectors: Tensor) -> Tensor:
        """`H v` of each of at most `width` vectors, or of more, one after the other: shapes (m, n)."""

    @abstractmethod
    def forms(self, frame: Tensor, vectors: Tensor) -> Tensor:
        """`frame H v` of each, shapes (k, n), (m, n) -> (m, k), float64: only these numbers travel between replicas."""

    @abstractmethod
    def loss(self, displacement: Tensor | None = None) -> float:
        """The loss beside the weights, or at them; one forward pass, the mean over ranks."""

    @abstractmethod
    def gauss_newton(self, vectors: Tensor) -> Tensor:
        """`G v` of each, `G = J'HJ`: J the Jacobian of the predictions, H the loss's Hessian in them. Shapes (m, n)."""

    @abstractmethod
    def residuals(self) -> Residuals:
        """The loss as squares, and their Jacobian; of all ranks, on every rank."""


class BaseMoments(Protocol):
    """What an Adam keeps and is told, as vectors of the space; nothing of it is changed."""

    def setting(self, name: str, place: int | None = None) -> float | Tensor:
        """A hyper-parameter: one number where all groups have the same, else one a weight, shape (n,)."""
        ...

    def decay(self) -> float | Tensor:
        """What a weight loses by decoupled decay, `lr wd` of it, as `setting` gives it; nothing where no step is made.

        Returns:
            The number, or the vector.
        """
        ...

    def first(self, *, corrected: bool = True) -> Tensor:
        """The first moment after the base's step, zero where none was made, with or without its bias: a new vector."""
        ...


@dataclass(frozen=True)
class Step:
    """One step of a training, after the base has made its own.

    Attributes:
        number: Of the step, from 1.
        space: What vectors are.
        weights: w before the step, shape (n,).
        moves: The gradient and the update as rows, shape (2, n).
        rate: `|u| / |g|`, the length of the base's step per length of the gradient.
        schedule: The learning rate over the one that it started from, where a scheduler moves it; else 1.
        oracle: What can be computed at them besides.
        moments: What the base keeps, where it is an Adam.
    """

    number: int
    space: Space
    weights: Tensor
    moves: Tensor
    rate: float
    schedule: float
    oracle: Oracle
    moments: BaseMoments

    @property
    def gradient(self) -> Tensor:
        """The loss's gradient g at the weights before the step, as the base got it but for clipping, shape (n,)."""
        return self.moves[0]

    @property
    def update(self) -> Tensor:
        """The update u that the base has added to the weights, shape (n,)."""
        return self.moves[1]


@dataclass
class VectorState:
    """What a method remembers, in a form that can be saved.

    Attributes:
        vectors: Vectors of the space, shapes (..., n).
        numbers: Small tensors that are equal on all ranks, on the CPU. One called "damping" is that of the methods on
            layers before this one too, in the units of one sample's loss; without it they have their own.
    """

    vectors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class VectorMethod(Protocol):
    """What the engine asks of a method on the whole parameter vector.

    It decides by numbers that are equal on all ranks alone, since every evaluation is a collective.

    Attributes:
        owns: What of a step is its own, so that what makes it otherwise is refused beside it. "nothing": it changes the
            base's update. "moments": it makes an Adam's step anew from what that keeps; methods on layers are refused.
            "step": step size and momentum too, so that the base's schedule alone is left; bases with a momentum or a
            decay, clipping and methods on layers are refused.
    """

    owns: ClassVar[Owned]

    def refuse(self, space: Space, groups: Sequence[dict]) -> str | None:
        """The reason why it cannot work there, with the way out, or None."""
        ...

    def init(self, space: Space) -> VectorState:
        """What it remembers at first, created eagerly."""
        ...

    def probes(self, number: int) -> bool:
        """Whether it evaluates anything at a step."""
        ...

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """What is added to the weights instead of the base's update, shape (n,), or None to leave that as it is.

        `step.update` may be changed in place and given back: vectors are long, and this is every step.
        """
        ...

    def scalars(self, state: VectorState) -> dict[str, float]:
        """What is logged."""
        ...

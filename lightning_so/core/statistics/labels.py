"""Whose labels output gradients are of: of the model's own distribution where the loss is known, else those at hand.

"auto" is left open until the first loss of a training is seen; what was found then holds to its end, and the plan says
it. Where gradients are preconditioned their length needs the curvature, of which labels at hand tell nothing once they
are fitted. Where updates are bent only a direction is asked for. There the labels at hand of classes are taken: they
cost nothing, and trained language models further; those of squared and logistic losses failed as the fit got good.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import GradientEdge

from lightning_so.errors import ConfigError
from lightning_so.losses.curvature import Softmax
from lightning_so.losses.terms import lasts

#: What the plan says of each.
DRAWN, GIVEN = "of labels drawn from the model", "of the labels at hand (empirical)"


@dataclass
class Labels:
    """What a method has asked for, and what was found.

    Attributes:
        asked: "empirical", "sampled", "exact" or "auto".
        found: The same without "auto"; None while that is open.
        why: Why "auto" came to be empirical.
    """

    asked: str
    found: str | None = None
    why: str = ""
    _told: str = ""

    @classmethod
    def of(cls, asked: str, *, sharded: bool) -> "Labels":
        """Those of a method.

        Args:
            asked: By the method.
            sharded: Whether parameters are pieces: their wrappers bear no part of a backward pass.

        Returns:
            Open for "auto", if a pass of our own is possible at all.
        """
        if asked != "auto":
            return cls(asked, asked)
        found = cls(asked)
        if sharded:
            found.settle("parameters are sharded")
        return found

    @property
    def open(self) -> bool:
        """Whether the loss is to tell."""
        return self.found is None

    @property
    def empirical(self) -> bool:
        """Whether gradients are those of the loss itself."""
        return self.found == "empirical"

    @property
    def of_loss(self) -> bool:
        """Whether the loss must be shown: its own gradients were ruled out by name."""
        return self.asked not in ("auto", "empirical")

    def settle(self, why: str) -> None:
        """Take the labels at hand from now on.

        Args:
            why: What hinders the others.
        """
        self.found, self.why = "empirical", why

    def recomputed(self, layer: str, method: str) -> None:
        """Take the labels at hand where a layer runs with gradients only inside the backward pass.

        Args:
            layer: Its name.
            method: That of the method.

        Raises:
            ConfigError: If others were asked for by name.
        """
        if self.asked != "auto":
            raise ConfigError(
                f"{layer}: {method}(fisher={self.asked!r}) cannot reach into checkpoint(..., use_reentrant=True): use "
                f"use_reentrant=False, or fisher='empirical'."
            )
        self.settle(f"{layer} is inside checkpoint(..., use_reentrant=True)")

    def decide(self, loss: Tensor, outputs: Sequence[GradientEdge], samples: int, *, bent: bool) -> None:
        """See whether labels can, and should, be drawn for a loss.

        Args:
            loss: The first of the training, before its backward pass.
            outputs: Where passes of our own would end.
            samples: Those of the micro-batch.
            bent: Whether only a direction is asked for.
        """
        from lightning_so.core.statistics.fisher import Passes

        if not lasts(loss):
            self.settle("the model is compiled, and its graph bears one backward pass")
            return
        try:
            passes = Passes(loss, outputs, samples, "auto")
        except ConfigError as error:
            self.settle(str(error).removeprefix("auto must know the loss function, and ").split(";")[0])
            return
        if bent and all(isinstance(head.curvature, Softmax) for head in passes.heads):
            self.settle("the loss is a cross-entropy of classes")
        else:
            self.found = "sampled"

    def __str__(self) -> str:
        """The line of the plan; nothing where the user has said it."""
        if self.asked != "auto":
            return ""
        if self.open:
            return f"Fisher matrices: {DRAWN}, or {GIVEN}: the first loss will tell"
        return f"Fisher matrices: {GIVEN}: {self.why}" if self.empirical else f"Fisher matrices: {DRAWN}"

    def news(self) -> str:
        """What was found, once; nothing else."""
        said = "" if self.open else str(self)
        new, self._told = said != self._told, said
        return said if new else ""

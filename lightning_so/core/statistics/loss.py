"""What is known of the loss of a step: by what it was multiplied and divided, and how it joins its samples."""

from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node

from lightning_so.contract.loss_unit import Written
from lightning_so.contract.method import ObservesRows
from lightning_so.errors import ConfigError
from lightning_so.losses.reduction import joined


@dataclass
class LossFacts:
    """How the losses of a step were scaled and how they join samples: the loop tells it, or the graph of a loss.

    Attributes:
        accumulate: By how many micro-batches the loss of each was divided; None for as many as come.
        scale: By what the loss was multiplied (a GradScaler's scale).
        mean: Whether the loss is a mean over samples.
        announced: Whether the coming backward pass is that of a loss; None if losses are not shown.
    """

    accumulate: int | None = None
    scale: float = 1.0
    mean: bool = True
    announced: bool | None = None

    def told(self, *, divided: int | None, scale: float, shown: bool) -> None:
        """Note what the loop tells of losses to come; see `Engine.loss_is`."""
        self.accumulate, self.scale = divided, scale
        if self.announced is None and shown:
            self.announced = False


def is_mean(
    loss: Tensor,
    stops: set[Node],
    samples: int,
    facts: LossFacts,
    reduction: str | None,
    needed_by: ObservesRows | None,
) -> bool:
    """Whether a loss is a mean over its samples.

    Args:
        loss: The loss, scaled and divided as it goes backward.
        stops: Where the outputs of layers are in its graph.
        samples: Those of the micro-batch.
        facts: By what it was multiplied and divided.
        reduction: "mean" or "sum", where the user has said so.
        needed_by: The method, if it depends on the answer.

    Returns:
        Whether it is; a loss that does not tell is taken for one.

    Raises:
        ConfigError: If a loss does not tell, and the method depends on it.
    """
    if reduction is not None:
        return reduction == "mean"
    told = joined(loss, stops, samples, facts.scale / (facts.accumulate or 1))
    if told.mean is None and needed_by is not None:
        raise ConfigError(
            f"{needed_by}: its damping is in units of one sample's loss, and whether this loss ({told.where}) is "
            f"a mean or a sum over samples cannot be read from its graph: say reduction='mean' or reduction='sum' "
            f"beside the method, or give damping=Relative(...)."
        )
    return told.mean is not False


def written(loss: Tensor | None, facts: LossFacts, terms: Tensor | float, ranks: int, *, given: bool = True) -> Written:
    """How a loss is written.

    Args:
        loss: The loss as it goes backward; None where it was not shown.
        facts: By what it was multiplied, and whether it is a mean.
        terms: Its terms.
        ranks: How many there are, over whose losses gradients are averaged.
        given: Whether gradients are those of the labels at hand.

    Returns:
        What a use tells of it.
    """
    level = 0.0 if loss is None else loss / (facts.scale * ranks)
    return Written(level, 1.0 if facts.mean else terms, given)

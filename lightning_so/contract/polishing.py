"""Methods that may make orthogonal what the base did in their basis."""

from typing import Protocol, runtime_checkable

from lightning_so.contract.method import BendsByPolarFactor, Rotates


@runtime_checkable
class Polishes(Rotates, BendsByPolarFactor, Protocol):
    """A method whose rotated updates of hidden matrices may be *polished*: their polar factors take their place.

    See `actions.polish`. Each keeps its length. A polar factor commutes with rotations, so it is found in the basis.
    """

    @property
    def polish(self) -> bool:
        """Whether they are in this configuration."""
        ...

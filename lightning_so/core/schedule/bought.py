"""What a share of time has bought: intervals and a bound for each step, in measured seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bought:
    """What takes the place of the age of a training, of modelled costs and of the modelled budget of a step.

    Attributes:
        every: The interval of each unit, in steps; powers of two.
        costs: Seconds of one solve of each unit.
        room: Seconds that the solves of one rank may take at a step.
        early: Whether blocks become warm as soon as their units are solved, whatever the method's start.
        since: The step at which it was bought.
    """

    every: list[int]
    costs: list[float]
    room: float
    early: bool
    since: int

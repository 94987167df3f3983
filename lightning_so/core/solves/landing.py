"""Where solves land: what changes when a result is swapped in, and when a block enters or leaves its basis."""

from dataclasses import dataclass

from torch import Tensor

from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import Matrices
from lightning_so.core.report import Report
from lightning_so.core.schedule.units import Units
from lightning_so.core.stacks.roster import Roster


@dataclass(frozen=True)
class Landing:
    """Where solves land.

    Attributes:
        units: What is solved on its own: statistics and histories change.
        roster: Who is warm, and who is away: changes.
        host: The training, whose moments change.
        matrices: Where these are whole.
        report: Tells the step, and counts.
        turned: Gets how far bases have turned, see `drift`; None where nobody takes it out.
    """

    units: Units
    roster: Roster
    host: Host
    matrices: Matrices
    report: Report
    turned: list[Tensor] | None = None

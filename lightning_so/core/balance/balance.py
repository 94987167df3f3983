"""Rounds at fixed steps: the seconds of all ranks' solves are exchanged, and units leave ranks that are slow.

Which rank solves a unit changes nothing but the rounding of batches. When it is due does not change.
"""

from collections.abc import Callable
from typing import Any

import torch

from lightning_so.core.balance.slowness import PARTS, measured, settled
from lightning_so.core.balance.times import SolveTimes
from lightning_so.core.host import Host
from lightning_so.core.overhead.clock import wall_of
from lightning_so.core.report import Report
from lightning_so.core.schedule.units import Units
from lightning_so.core.statistics.windows import share_factors

#: Steps from one round to the next: so many of the largest interval in force, and as many at the least.
INTERVALS, LEAST = 4, 32


class Balance:
    """Measures how slow each rank is, and gives it as many units as it solves in the others' time.

    Attributes:
        times: Seconds of this rank's solves.
        slowness: What is in force, by rank, in `PARTS` of the median rank's seconds.
        agree: Gives the seconds of all ranks, on all of them: a collective.
    """

    def __init__(self, units: Units, host: Host, report: Report) -> None:
        """All ranks are equal until they are measured.

        Args:
            units: What is solved, and by whom.
            host: The training, of several ranks.
            report: Counts the units that are moved, and the steps.
        """
        self._units, self._host, self._report = units, host, report
        self.times = SolveTimes(wall_of(host.params[0].device), units.kinds)
        self.agree: Callable[[], list[list[float]]] = self._agreed
        self.slowness, self._last = [PARTS] * host.team.ranks, [1.0] * host.team.ranks
        self._coming = report.step + LEAST

    @property
    def told(self) -> str:
        """What the plan says of it."""
        if self._stays:
            return "; speeds of ranks are measured, and owners stay, who alone have the curvature"
        return "; who solves what follows the measured speed of ranks"

    @property
    def _stays(self) -> bool:
        return self._units.schedule.stays

    def around(self, solve: Callable[..., Any], step: int, tell: Callable[[object], None]) -> Callable[..., Any]:
        """Hold a round where one is due: a collective then; and note the solves to come.

        Args:
            solve: Solves units of one kind.
            step: The step, at which solves are about to begin; nothing travels to owners.
            tell: Called with what has changed.

        Returns:
            The function, whose calls are noted.
        """
        if step >= self._coming:
            self._round(step, tell)
        return self.times.around(solve)

    def _round(self, step: int, tell: Callable[[object], None]) -> None:
        self._coming = step + max(LEAST, INTERVALS * max(self._units.schedule.every))
        now = measured(self.agree(), [parts / PARTS for parts in self.slowness])
        before, last = self.slowness, self._last
        self.slowness, self._last = settled(before, last, now), now
        if self.slowness != before:
            tell(self._words(before, self._weigh()))

    def _weigh(self) -> int:
        """Move units; and with those whose factors are at their owners alone, the factors. How many were moved."""
        if self._stays:
            return 0
        units = self._units
        schedule, was = units.schedule, units.schedule.owner
        now = self._owners()
        moved = [number for number, owner in enumerate(now) if owner != was[number]]
        share_factors(units, self._host.team, {(units[number].stack, units[number].row) for number in moved})
        schedule.owner = now
        self._report.moved += len(moved)
        return len(moved)

    def _owners(self) -> list[int]:
        return self._units.schedule.owners([parts / PARTS for parts in self.slowness])

    def _words(self, before: list[int], moved: int) -> str:
        new = [
            (rank, parts) for rank, (was, parts) in enumerate(zip(before, self.slowness, strict=True)) if was != parts
        ]
        said = [f"rank {rank} takes {'' if now == PARTS else f'{now / PARTS:g} times '}" for rank, now in new[:4]]
        said = ", ".join(f"{each}the median rank's seconds" for each in said)
        more = f", {len(new) - 4} more ranks have changed" if len(new) > 4 else ""
        what = f"{moved} of {len(self._units)} units are moved"
        if self._stays:
            what = "blocks stay with their owners, who alone have their curvature"
        return f"balance: for a solve {said}{more}; {what}."

    def _agreed(self) -> list[list[float]]:
        team = self._host.team
        wire = torch.tensor(self.times.means(), dtype=torch.float64).view(torch.uint8)
        wires = team.gather(wire, [wire.numel()] * team.ranks)
        return [each.cpu().clone().view(torch.float64).tolist() for each in wires]

    def scalars(self) -> dict[str, float]:
        """The slowness of the slowest rank at the last round, and how many units were moved so far."""
        return {"so/slowest_rank": max(self._last), "so/moved_units": float(self._report.moved)}

    # ---------------------------------------------------------------- what a checkpoint holds

    def state_dict(self) -> dict[str, Any]:
        """What is in force and what was measured; seconds since the last round are left out, and noted anew."""
        return {"slowness": [*self.slowness], "last": [*self._last], "coming": self._coming}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state_dict` gave; with none, or one of another number of ranks, from what is known here.

        Factors are on all ranks when a state with one is loaded: nothing travels.

        Args:
            state: The state, or None; equal on all ranks.
        """
        self._coming = self._report.step + LEAST
        if state is None or len(state["slowness"]) != self._host.team.ranks:
            return
        self.slowness, self._last, self._coming = [*state["slowness"]], [*state["last"]], state["coming"]
        if not self._stays:
            self._units.schedule.owner = self._owners()

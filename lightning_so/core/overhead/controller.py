"""The controller: rounds of measuring at fixed steps, what each buys, and how that is put in force.

Rank 0's timings go to all ranks, so that all choose equally. After the last round nothing is chosen any more: the
schedule is again a pure function of the step, and of what a checkpoint holds.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch

from lightning_so.contract.method import Action
from lightning_so.core.host import Host
from lightning_so.core.options import Overhead
from lightning_so.core.overhead import words
from lightning_so.core.overhead.choice import THINNEST, Choice, Wares, choose
from lightning_so.core.overhead.clock import clock_of
from lightning_so.core.overhead.meter import Lap, Meter
from lightning_so.core.overhead.timings import Timings, timings, unsteady
from lightning_so.core.schedule.bought import Bought
from lightning_so.core.schedule.units import Units
from lightning_so.core.stacks.roster import Roster
from lightning_so.core.stopwatch import Stopwatch
from lightning_so.errors import ConfigError

#: Steps whose times are not used: what they allocate is allocated once.
WARMUP = 2
#: Steps of measuring up to the first choice; each round is as long as all before it together.
FIRST = 8
#: The last round, unless blocks have become warm since the one before.
LAST = 128
#: Steps of a round beyond it, and between two looks at who is warm.
BEYOND = 64
#: By how much two rounds may differ without a word.
STEADY = 0.3


@dataclass
class Measuring:
    """How far measuring is.

    Attributes:
        since: The step after which it began.
        coming: The step of the next round.
        settled: Whether there is none.
        warm: How many blocks were warm at the last one.
        among: How many engines shared the budget then.
        chosen: The step of the last choice; 0 for none.
        relief: See `choice.Wares`, at the last choice.
    """

    since: int
    coming: int
    settled: bool = False
    warm: int = 0
    among: int = 1
    chosen: int = 0
    relief: float = 1.0


class Controller:
    """Measures an engine's steps, and buys what its share of time allows.

    Attributes:
        choice: What is in force; None before the first round.
        agree: Gives the timings of a round: a collective. A run that is to repeat another's choices gives that one's.
        spent: Seconds of ours and of the training's own, in all steps of which they are known.
    """

    def __init__(self, asked: Overhead, units: Units, host: Host, step: int) -> None:
        """Nothing is measured yet.

        Args:
            asked: The share.
            units: What can be solved.
            host: The training.
            step: Steps made.

        Raises:
            ConfigError: If a method solves all its units at one step.
        """
        self._asked, self._units, self._host = asked, units, host
        self._device = clock_of(host.params[0].device).device if host.params else "nothing"
        burst = next(
            (s.method for s in units.stacks if s.solver is not None and not s.method.pace()[1].staggered), None
        )
        if burst is not None:
            raise ConfigError(
                f"SecondOrder(max_overhead={asked.share}): {type(burst).__name__}(schedule=Synchronous()) solves all "
                f"at one step, which no share of a step bounds: use schedule=Staggered(), or leave max_overhead out."
            )
        self.choice: Choice | None = None
        self.agree: Callable[[], Timings] = self._agreed
        self.spent = self._told = (0.0, 0.0)
        self._timings: Timings | None = None
        self._laps, self._news = list[Lap](), list[str]()
        self._at = Measuring(step, step + FIRST)
        self._thin(THINNEST)

    # ---------------------------------------------------------------- at a step

    def consider(
        self, step: int, watched: Sequence[float], roster: Roster, meter: Stopwatch, tell: Callable[[object], None]
    ) -> None:
        """Take in what was measured; at the step of a round choose anew: a collective of all ranks then.

        Args:
            step: The step, before anything is due at it.
            watched: The share of its blocks that each method with rows has watched at it.
            roster: Who is warm.
            meter: Has measured: see `overhead.meter.stopwatch_of`.
            tell: Called with what is chosen.

        Raises:
            ConfigError: If the share cannot be kept, and is asked for strictly.
        """
        assert isinstance(meter, Meter), "a meter was exchanged for a plain stopwatch"
        while self._news:
            tell(self._news.pop())
        meter.watched(max(watched, default=0.0))
        at = self._at
        while meter.laps:
            lap = meter.laps.popleft()
            self.spent = self.spent[0] + lap.ours, self.spent[1] + lap.own
            if not at.settled and step - at.since > WARMUP + 1:
                self._laps.append(lap)
        warm = sum(map(sum, roster.warm))
        if at.settled and (step - at.since) % BEYOND == 0 and warm != at.warm:
            at.settled, at.coming = False, step + BEYOND // 2
        if at.settled or step < at.coming:
            return
        self._round(step, warm, len(meter.peers), tell)

    def _round(self, step: int, warm: int, among: int, tell: Callable[[object], None]) -> None:
        at, before = self._at, self._timings
        found = self.agree()
        if not found.own > 0 or any(map(math.isnan, found.solves)):
            at.coming = step + FIRST  # Nothing was seen, as where no step was a usual one.
            return
        if before is not None and warm == at.warm and (difference := unsteady(before, found, STEADY)) is not None:
            warnings.warn(words.unequal(found, before, difference), stacklevel=2)
        at.settled = step - at.since >= LAST and warm == at.warm
        at.coming = step + min(step - at.since, BEYOND)
        first, self._timings = self.choice is None, found
        at.warm, at.among, at.chosen, at.relief = warm, among, step, self._relief(warm)
        self._laps.clear()
        choice = self._choose()
        if first or at.settled:
            tell(words.chosen(self._share, found, choice))
        if at.settled and choice.floor > self._share:
            if self._asked.strict:
                raise ConfigError(words.unmet(self._share, found, choice, self._units))
            warnings.warn(words.unmet(self._share, found, choice, self._units), stacklevel=2)

    @property
    def _share(self) -> float:
        return self._asked.share / self._at.among

    @property
    def _thinning(self) -> int:
        """Of how many rows one is taken: before anything is known, as few as there may be."""
        return THINNEST if self.choice is None else self.choice.thinning

    def _thin(self, every: int) -> None:
        for stack in self._units.stacks:
            if stack.thinner is not None:
                stack.thinner.thin(stack.stats, every)

    def _agreed(self) -> Timings:
        """Rank 0's timings on all ranks; of kinds that it has not solved, the first rank's that has."""
        kinds, team = max(self._units.kinds, default=-1) + 1, self._host.team
        nothing = Timings(math.nan, 0.0, 0.0, 0.0, 1, (math.nan,) * kinds)
        mine = timings(self._laps, kinds, self._thinning) if self._laps else nothing
        wire = torch.tensor(mine.vector(), dtype=torch.float64).view(torch.uint8)
        wires = team.gather(wire, [wire.numel()] * team.ranks)
        told = [Timings.of_vector(each.cpu().clone().view(torch.float64).tolist()) for each in wires]
        found = told[0]
        for other in told[1:]:
            found = found.completed(other, [0.0] * kinds)
        modelled = [self._units[self._units.kinds.index(kind)].cost for kind in range(kinds)]
        return found.completed(self._timings, modelled)

    def _relief(self, warm: int) -> float:
        """See `choice.Wares.relief`."""
        stacks = self._units.stacks
        if warm == sum(len(stack.blocks) for stack in stacks):
            return 1.0
        cold, hot = (
            sum(len(s.blocks) * s.method.step_cost(s, action) for s in stacks if s.rotates and not s.edge)
            for action in (Action.BEND, Action.ROTATE)
        )
        return min(1.0, hot / cold) if cold else 1.0

    def _choose(self) -> Choice:
        """Choose by what is known, and put it in force."""
        assert self._timings is not None
        units, at = self._units, self._at
        rows = [units.stack(number).tapped is not None for number in range(len(units))]
        finals, owners = [unit.final for unit in units], units.schedule.owner
        wares = Wares(units.kinds, finals, owners, units.schedule.ranks, rows, at.relief)
        choice = choose(self._share, self._timings, wares)
        self._thin(choice.thinning)
        units.schedule.bought = Bought(choice.every, choice.costs, choice.room, choice.early, at.chosen)
        self.choice = choice
        return choice

    def scalars(self) -> dict[str, float]:
        """The share that was foretold, 0 before the first choice, and that measured since this was last asked."""
        ours, own = (now - before for before, now in zip(self._told, self.spent, strict=True))
        self._told = self.spent
        return {
            "so/overhead_predicted": 0.0 if self.choice is None else self.choice.predicted,
            "so/overhead_measured": ours / own if own > 0 else 0.0,
        }

    # ---------------------------------------------------------------- what a checkpoint holds

    def state_dict(self) -> dict[str, Any]:
        """The timings, and what was measured since: a run that is resumed goes on with them."""
        return {
            "device": self._device,
            "progress": dict(vars(self._at)),
            "timings": None if self._timings is None else self._timings.vector(),
            "thinning": self._thinning,
            "laps": [list(astuple(lap)) for lap in self._laps],
        }

    def load_state_dict(self, state: dict[str, Any] | None, step: int) -> None:
        """Go on from what `state_dict` gave; on another device what it has bought stays until it is measured anew.

        Args:
            state: The state, or None where there is none; equal on all ranks, and all of them call it.
            step: Steps made.
        """
        self._at, self._timings, self.choice = Measuring(step, step + FIRST), None, None
        self._units.schedule.bought, self._told = None, self.spent
        self._laps.clear()
        self._thin(self._thinning)
        if state is None:
            return
        known = None if state["timings"] is None else Timings.of_vector(state["timings"])
        if known is not None and len(known.solves) != max(self._units.kinds, default=-1) + 1:
            return  # Of other units than there are.
        self._at = Measuring(**state["progress"])
        if known is not None:
            self._timings = known
            self._choose()
        # Rank 0 has measured.
        if self._host.team.anywhere([self._host.team.rank == 0 and state["device"] != self._device])[0]:
            self._news.append(words.moved(state["device"], self._device))
            self._at = Measuring(step, step + FIRST, among=self._at.among, chosen=self._at.chosen)
            self._timings = None
        else:
            self._laps = [Lap(*lap) for lap in state["laps"]]

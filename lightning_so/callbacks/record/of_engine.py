"""What an engine tells the recorder of a step: all of it is on the host already."""

from torch import Tensor

from lightning_so.core.engine import Engine
from lightning_so.core.options import Part
from lightning_so.core.schedule.units import Place
from lightning_so.core.stacks.roster import Roster
from lightning_so.core.trust.memory import state_bytes
from lightning_so.core.trust.proof import staleness
from lightning_so.recording.recording import Event, Number

#: Counts of the report that are columns, by the column's name.
COUNTS = {"rotated": "rotated", "bent": "bent", "preconditioned": "preconditioned", "solves": "solves"}
#: Blocks that an event names; of others it tells the number.
NAMED = 5


class OfEngine:
    """Watches one engine from step to step."""

    def __init__(self, engine: Engine) -> None:
        """Remember where its counts are.

        Args:
            engine: The engine.
        """
        self.engine = engine
        self._seconds = sum(engine.stopwatch.seconds.values())
        self._counts, self._warm = self._now(), self._rows()
        self._step, self._part = engine.report.step, engine.part
        engine.parts.turned = []
        self._spent = (0.0, 0.0) if engine.parts.overhead is None else engine.parts.overhead.spent

    def _now(self) -> dict[str, int]:
        report = self.engine.report
        names = ("skipped", "retries", "failures", "undone", "withheld", "foreign")
        return {name: getattr(report, name) for name in names}

    def _rows(self) -> list[list[bool]]:
        return [list(rows) for rows in self.engine.parts.roster.warm]

    def row(self, wall: float) -> dict[str, Number]:
        """Columns of the last step.

        Args:
            wall: Seconds since the row before.

        Returns:
            Numbers by column.
        """
        report, parts = self.engine.report, self.engine.parts
        seconds, before = sum(self.engine.stopwatch.seconds.values()), self._seconds
        self._seconds = seconds
        oldest, most = staleness(parts.units, report.step)
        found: dict[str, Number] = {column: getattr(report, name) for column, name in COUNTS.items()}
        found |= {"staleness_max": oldest, "staleness_p95": most, "skipped": report.skipped}
        found["fallbacks"] = report.retries + report.failures
        found["overhead"] = (seconds - before) / wall if wall > 0 else None
        if parts.overhead is not None:
            ours, own = (now - before for before, now in zip(self._spent, parts.overhead.spent, strict=True))
            self._spent = parts.overhead.spent
            found["overhead_measured"] = ours / own if own > 0 else None
            found["overhead_predicted"] = None if parts.overhead.choice is None else parts.overhead.choice.predicted
        return found

    def turned(self) -> list[Tensor]:
        """How far bases have turned by solves that have landed since it was asked last; see `core.solves.drift`."""
        parts = self.engine.parts
        found, parts.turned = parts.turned or [], []
        return found

    def solved(self) -> dict[int, list[str]]:
        """Blocks that were solved at the last step, by the rank that has solved them."""
        step, units = self.engine.report.step, self.engine.parts.units
        if step == self._step:
            return {}
        self._step = step
        schedule, found = units.schedule, dict[int, list[str]]()
        for number, tried in enumerate(schedule.tried):
            if tried == step:
                found.setdefault(schedule.owner[number], []).append(units.block(number).name)
        return found

    def events(self, step: int) -> list[Event]:
        """What happened since it was asked last.

        Args:
            step: The Trainer's.

        Returns:
            The events.
        """
        found, before = list[Event](), self._counts
        self._counts = now = self._now()
        said = {
            "skipped": ("skipped", "a gradient was not finite: the step was left out"),
            "retries": ("fallback", "solves that went on by safer means"),
            "failures": ("failure", "solves that failed by all means: the last basis is kept"),
            "undone": ("undone", "the optimizer did not step: its weights were put back"),
            "withheld": ("withheld", "gradients that another rank lacked: kept from the optimizer"),
            "foreign": ("foreign", "states of the optimizer that were loaded past us: their blocks start anew"),
        }
        for name, (kind, text) in said.items():
            if now[name] > before[name]:
                found.append(Event(step, kind, "", f"{now[name] - before[name]} x {text}"))
        was, self._part = self._part, self.engine.part
        if was is not Part.ACTS and self._part is Part.ACTS:
            found.append(Event(step, "promoted", "", f"{self.engine.plan.method} is warm, and acts"))
        return [*found, *self._turned(step)]

    def _turned(self, step: int) -> list[Event]:
        """Blocks that were let into their basis since, and those that have left it."""
        before, warm = self._warm, self.engine.parts.roster.warm
        if before == warm:
            return []
        self._warm = self._rows()
        if list(map(len, before)) != list(map(len, warm)):
            return []  # parameters were added: these are other blocks
        entered, found, roster = list[str](), list[Event](), self.engine.parts.roster
        for index, (stack, old, new) in enumerate(zip(roster.stacks, before, warm, strict=True)):
            for row, (block, was, now) in enumerate(zip(stack.blocks, old, new, strict=True)):
                if now and not was:
                    entered.append(block.name)
                elif was and not now:
                    found.append(Event(step, "cooled", block.name, _why(roster, (index, row))))
        if entered:
            names = ", ".join(entered[:NAMED]) + (", ..." if len(entered) > NAMED else "")
            text = f"{len(entered)} blocks go on in their basis, or on their curvature: {names}"
            found.append(Event(step, "entered", entered[0] if len(entered) == 1 else "", text))
        return found

    def memory(self) -> int:
        """Bytes that curvature holds."""
        return state_bytes(self.engine.parts.units, self.engine.parts.matrices)

    def plan(self) -> str:
        """The plan as text; the first loss may change it."""
        return str(self.engine.plan)


def _why(roster: Roster, place: Place) -> str:
    """Why a block has left its basis."""
    if place in roster.alone:
        return "its weight has no gradient and its bias has: the optimizer steps on the bias alone"
    if place in roster.away:
        return "its moments were loaded past us: it enters again with the next solves"
    return "solves of its basis kept failing: its updates are the optimizer's own, bent, until they are good again"

"""What the engine did: counts since the start of training, and the facts of the last step."""

from dataclasses import asdict, dataclass


@dataclass
class Report:
    """Counts since the start of training, and the facts of the last step.

    Attributes:
        step: Optimizer steps that the engine took part in.
        skipped: Steps withheld because a gradient was not finite.
        undone: Steps whose parameters were hidden and put back, because the base optimizer did not step.
        withheld: Gradients withheld because they were missing on another rank.
        solves: Units solved, over all ranks.
        solved_here: Units solved by this rank.
        sent: Bytes that this rank has sent to the others.
        moved: Units that went to another rank, as ranks are not equally fast.
        retries: Solves that needed a higher rung of the failure ladder.
        failures: Solves that failed on every rung; the last basis was kept.
        cooled: Blocks that left their basis because its solves kept failing.
        verified: Updates compared with a float64 reference.
        deviation: Largest deviation from it so far, relative to the update.
        foreign: States that the base was given between two steps, by a load, without what belongs to them here.
        rotated: Blocks rotated at the last step.
        bent: Blocks bent at the last step.
        preconditioned: Blocks whose gradients were preconditioned at the last step.
        coverage: Share of the optimizer's elements that the method works on.
    """

    step: int = 0
    skipped: int = 0
    undone: int = 0
    withheld: int = 0
    solves: int = 0
    solved_here: int = 0
    sent: int = 0
    moved: int = 0
    retries: int = 0
    failures: int = 0
    cooled: int = 0
    verified: int = 0
    deviation: float = 0.0
    foreign: int = 0
    rotated: int = 0
    bent: int = 0
    preconditioned: int = 0
    coverage: float = 0.0

    @property
    def tried(self) -> int:
        """Steps that came, whether or not they were made."""
        return self.step + self.skipped

    def portable(self) -> dict[str, float]:
        """What is the same on every rank, for files."""
        return {name: value for name, value in asdict(self).items() if name not in ("solved_here", "sent")}

    def __str__(self) -> str:
        """What was done, in one line."""
        moved = f", {self.moved} moved" if self.moved else ""
        shared = f" ({self.solved_here} of them here{moved}, {self.sent / 1e6:.3g} MB sent)" if self.sent else ""
        first = f", {self.preconditioned} preconditioned" if self.preconditioned else ""
        return (
            f"{self.step} steps, {self.skipped} skipped, {self.undone} undone; at the last one {self.rotated} blocks "
            f"rotated{first} and {self.bent} bent; {self.solves} solves{shared}, {self.retries} retried, "
            f"{self.failures} failed" + (f"; {self.foreign} foreign states of the optimizer" if self.foreign else "")
        )

"""What the engine did: counts that the callback logs and the user reads."""

from dataclasses import dataclass


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
        retries: Solves that needed a higher rung of the failure ladder.
        failures: Solves that failed on every rung; the last basis was kept.
        rotated: Blocks rotated at the last step.
        bent: Blocks bent at the last step.
        age_max: Steps since the oldest unit was solved.
        coverage: Share of the optimizer's elements that the method works on.
    """

    step: int = 0
    skipped: int = 0
    undone: int = 0
    withheld: int = 0
    solves: int = 0
    solved_here: int = 0
    retries: int = 0
    failures: int = 0
    rotated: int = 0
    bent: int = 0
    age_max: int = 0
    coverage: float = 0.0

    def scalars(self) -> dict[str, float]:
        """The stable names under which the counts are logged."""
        return {
            "so/rotated_blocks": float(self.rotated),
            "so/bent_blocks": float(self.bent),
            "so/solves": float(self.solves),
            "so/solve_fallbacks": float(self.retries + self.failures),
            "so/skipped_steps": float(self.skipped),
            "so/withheld_gradients": float(self.withheld),
            "so/staleness_max": float(self.age_max),
            "so/coverage_params": self.coverage,
        }

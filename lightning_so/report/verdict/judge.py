"""All that is looked at, in the order in which it is told."""

from dataclasses import dataclass

from lightning_so.report.run import Run
from lightning_so.report.verdict import curvature, loss, ranks, strides, units, weights
from lightning_so.report.verdict.finding import BAD, NOTE, WARN, Finding

CHECKS = (
    *(ranks.ended, loss.finite, loss.course, loss.gradient),
    *(units.dead, units.saturated, units.collapsed, units.large, weights.frozen, strides.far),
    *(ranks.missing, ranks.slow),
    *(curvature.budget, curvature.stale, curvature.fallbacks, curvature.left, curvature.edge, curvature.shadow),
)
ORDER = (BAD, WARN, NOTE)


@dataclass(frozen=True)
class Verdict:
    """What there is to say of a run.

    Attributes:
        findings: What did not go well, the worst first.
        good: What did, with its evidence.
        missing: What could not be looked at.
    """

    findings: list[Finding]
    good: list[str]
    missing: list[str]

    @property
    def worst(self) -> str:
        """The severity of the worst finding; empty without one."""
        return self.findings[0].severity if self.findings else ""


def judge(run: Run) -> Verdict:
    """Look at a run.

    Args:
        run: The run.

    Returns:
        What was found. Where weights are frozen because their loss is not finite any more, the loss alone is told.
    """
    checks = [check(run) for check in CHECKS]
    findings = sorted(
        (each for check in checks for each in check.findings), key=lambda each: ORDER.index(each.severity)
    )
    return Verdict(findings, [check.good for check in checks if check.good], [c.missing for c in checks if c.missing])

"""What is found, and what is evidence that there was nothing to find."""

from collections.abc import Sequence
from dataclasses import dataclass, field

#: In the order of how bad they are: training is broken; a part of it is; worth knowing.
BAD, WARN, NOTE = "bad", "warn", "note"


@dataclass(frozen=True)
class Finding:
    """One thing that did not go well.

    Attributes:
        severity: `BAD`, `WARN` or `NOTE`.
        kind: What it is in a word, for machines: "dead", "frozen", "spike", ...
        where: Layer, rank or steps.
        what: What is wrong, one sentence.
        why: The figures that say so.
        move: What to do next.
        chart: The chart that shows it; empty for none.
        steps: First and last step of it; None where it has none.
    """

    severity: str
    kind: str
    where: str
    what: str
    why: str
    move: str
    chart: str = ""
    steps: tuple[int, int] | None = None


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        findings: What did not go well.
        good: What speaks for it that all is well; empty where there are findings, or nothing could be looked at.
        missing: Why nothing could be looked at; empty where it could.
    """

    findings: Sequence[Finding] = field(default_factory=tuple)
    good: str = ""
    missing: str = ""


def figure(value: float | None) -> str:
    """A number for people: three digits, thousands apart, powers of ten where it is far from one.

    Args:
        value: The number; None is a dash.

    Returns:
        Text.

    Example:
        >>> figure(1234567.0), figure(0.012345), figure(2.5e-9), figure(None)
        ('1,234,567', '0.0123', '2.5e-09', '-')
    """
    if value is None:
        return "-"
    if value and not 1e-3 <= abs(value) < 1e9:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names, the first few of many.

    Args:
        names: The names.
        most: How many are told.

    Returns:
        Text.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")

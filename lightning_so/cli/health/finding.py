"""What a check has found."""

from dataclasses import dataclass

#: In the order of how bad they are.
GOOD, ODD, BAD = "ok", "odd", "FAILED"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        check: What was looked at.
        state: `GOOD`, `ODD` (training would run, slower or later) or `BAD`.
        seen: What was found.
        remedy: The next move; empty where nothing is to be done.
    """

    check: str
    state: str
    seen: str
    remedy: str = ""


def good(check: str, seen: str) -> Finding:
    """Nothing to do."""
    return Finding(check, GOOD, seen)


def odd(check: str, seen: str, remedy: str) -> Finding:
    """Worth a look."""
    return Finding(check, ODD, seen, remedy)


def bad(check: str, seen: str, remedy: str) -> Finding:
    """Training would not start, or not be the one asked for."""
    return Finding(check, BAD, seen, remedy)

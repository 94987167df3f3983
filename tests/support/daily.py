"""Which rows of a test run every day: the others are slow, and of the whole suite."""

from collections.abc import Iterable
from typing import Any

import pytest


def daily(rows: Iterable[Any], *every: Any) -> list[Any]:
    """Rows for `parametrize`, slow but for those that are named.

    Args:
        rows: All of them.
        *every: Those that run every day.

    Returns:
        The rows, in their order.
    """
    found = list(rows)
    assert all(each in found for each in every), f"{every} are not all among {found}"
    values = [each if isinstance(each, tuple) else (each,) for each in found]  # a row of several names is a tuple
    return [pytest.param(*of, marks=() if each in every else pytest.mark.slow) for each, of in zip(found, values)]


def one_in(number: int, rows: Iterable[Any]) -> list[Any]:
    """Rows for `parametrize`, slow but for every so many, the first one among them: where all are of one kind."""
    found = list(rows)
    return daily(found, *found[::number])

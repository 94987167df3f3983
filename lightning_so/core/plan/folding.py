"""Lines of a plan that are alike but for a number in their names, as one: `blocks.0-31.mlp.up.weight`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

#: A plan of as many lines at most is printed whole.
FEW = 40
#: In a text, the number that was taken out.
HOLE = "\0"
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Line:
    """One parameter in the printed plan, or several.

    Attributes:
        name: Full name; of several, with the range of their number.
        shape: Of each.
        verdict: What happens to it.
        size: Extra bytes held for each; None for none.
        owners: The ranks that solve its units.
        count: How many parameters.
    """

    name: str
    shape: tuple[int, ...]
    verdict: str
    size: int | None = None
    owners: tuple[int, ...] = ()
    count: int = 1


def folded(lines: Sequence[Line]) -> list[Line]:
    """Lines of which there are not too many to read.

    Args:
        lines: One a parameter, in order.

    Returns:
        The same, if they are few; else those that are alike but for one number in their names as one, and again where
        names have several numbers. Each stands where the first of them stood.

    Example:
        >>> many = [Line(f"blocks.{n}.up.weight", (8, 4), "hidden") for n in range(64)]
        >>> [(line.name, line.count) for line in folded(many)]
        [('blocks.0-63.up.weight', 64)]
    """
    found = list(lines)
    most = max((len(NUMBER.findall(line.name)) for line in lines), default=0)
    # From the last number on, so that those that are still to come keep their places.
    for place in reversed(range(most)) if len(found) > FEW else ():
        found = _fold(found, place)
    return found


def _fold(lines: Sequence[Line], place: int) -> list[Line]:
    """Fold lines by one of the numbers of their names."""
    groups: dict[tuple, list[tuple[int, Line]]] = {}
    for position, line in enumerate(lines):
        numbers = [*NUMBER.finditer(line.name)]
        if place >= len(numbers):
            groups[(position,)] = [(0, line)]
            continue
        at = numbers[place]
        begin, end = line.name[: at.start()] + HOLE, line.name[at.end() :]
        key = begin + end, _without(line, at.end(), begin), line.shape, line.size, line.count
        groups.setdefault(key, []).append((int(at[0]), line))
    return [_one(key, members) for key, members in groups.items()]


def _without(line: Line, end: int, begin: str) -> str:
    """A verdict without the number that ends there in the name: that of a bias names its weight, of the same module."""
    module = line.name.rpartition(".")[0]
    if end > len(module):
        return line.verdict
    return re.sub(rf"(?<![\w.]){re.escape(module)}(?=\.)", lambda _: begin + module[end:], line.verdict)


def _one(key: tuple, members: list[tuple[int, Line]]) -> Line:
    """The line of several."""
    if len(members) == 1:
        return members[0][1]
    numbers, (name, verdict, *_) = _ranges(sorted(number for number, _ in members)), key
    return replace(
        members[0][1],
        name=name.replace(HOLE, numbers),
        verdict=verdict.replace(HOLE, numbers),
        owners=tuple(sorted({owner for _, line in members for owner in line.owners})),
        count=sum(line.count for _, line in members),
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers as "0-3,5"."""
    edges = [numbers[0], *(edge for a, b in pairwise(numbers) if b > a + 1 for edge in (a, b)), numbers[-1]]
    runs = zip(edges[::2], edges[1::2], strict=True)
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)

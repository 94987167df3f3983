"""A run: the recordings of its ranks as one."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

#: A number, or None where it is not finite or not known.
Number = float | None
#: How the numbers of ranks become one: a loss that is not finite on one rank is not finite.
SHARED = ("loss", "lr", "overhead", "overhead_predicted", "overhead_measured")
SQUARES = ("gradient", "update")
OF_LAYERS = ("weight", "update", "gradient", "dot")


@dataclass(frozen=True)
class Matrix:
    """Numbers by look and layer.

    Attributes:
        steps: Of each look.
        names: Of each layer.
        rows: Of each look, a number of each layer.
    """

    steps: list[int]
    names: list[str]
    rows: list[list[Number]]

    def layers(self) -> Iterator[tuple[str, list[Number]]]:
        """(name, its numbers over the looks) of each layer."""
        yield from zip(self.names, map(list, zip(*self.rows)) if self.rows else [[] for _ in self.names])


class Run:
    """The recordings of a run's ranks.

    Attributes:
        name: What the run is called on the page.
        recordings: One a rank that is there, by rank.
    """

    def __init__(self, name: str, recordings: Sequence[dict[str, Any]]) -> None:
        """Hold them.

        Args:
            name: What the run is called on the page.
            recordings: One a rank; at least one.
        """
        self.name, self.recordings = name, recordings
        self.first = recordings[0]
        self.facts: dict[str, Any] = self.first["facts"]
        self.ranks: int = self.first["ranks"]
        self.written: dict[str, Any] = self.first["written"]

    @property
    def missing(self) -> list[int]:
        """Ranks of which there is no recording."""
        return sorted(set(range(self.ranks)) - {each["rank"] for each in self.recordings})

    @property
    def sharded(self) -> bool:
        """Whether squared norms are those of a rank's part."""
        return bool(self.facts.get("sharded"))

    @cached_property
    def steps(self) -> list[int]:
        """Every step that is known, in order: the whole run thinned, its last steps whole."""
        parts = (each[part].get("step") or () for each in self.recordings for part in ("whole", "last"))
        return sorted({step for part in parts for step in part})

    @cached_property
    def length(self) -> int:
        """Steps that this recording is of."""
        return (self.steps[-1] if self.steps else self.first["begun"].get("step", 0)) - self.first["begun"].get(
            "step", 0
        )

    def has(self, name: str) -> bool:
        """Whether a column is there with at least one number."""
        return any(value is not None for part in ("whole", "last") for value in self.first[part].get(name) or ())

    def column(self, name: str) -> tuple[list[int], list[Number]]:
        """Steps and numbers of a column, all ranks as one.

        Args:
            name: The column.

        Returns:
            The steps at which one rank has told it, and the numbers: means of losses, rates and shares over the ranks,
            sums of squared norms where ranks hold parts, else the largest.
        """
        of_ranks = [self.of_rank(each, name) for each in self.recordings]
        steps = [step for step in self.steps if any(step in rank for rank in of_ranks)]
        return steps, [self._joined(name, [rank[step] for rank in of_ranks if step in rank]) for step in steps]

    def known(self, name: str) -> tuple[list[int], list[float]]:
        """A column without what is not finite or was not measured."""
        found = [(step, value) for step, value in zip(*self.column(name)) if value is not None]
        return [step for step, _ in found], [value for _, value in found]

    def of_rank(self, rank: dict[str, Any], name: str) -> dict[int, Number]:
        """A column of one rank's recording, by step."""
        found = dict[int, Number]()
        for part in ("whole", "last"):
            columns = rank[part]
            found.update(zip(columns.get("step") or (), columns.get(name) or ()))
        return found

    def _joined(self, name: str, values: list[Number]) -> Number:
        if name == "loss" and any(value is None for value in values):
            return None
        known = [value for value in values if value is not None]
        if not known:
            return None
        if name in SHARED:
            return fmean(known)
        return sum(known) if name in SQUARES and self.sharded else max(known)

    # ---------------------------------------------------------------- layers
    @cached_property
    def layers(self) -> dict[str, Matrix]:
        """Squared norms of weights, updates and gradients, and inner products of the last two, by name."""
        parts = [each["layers"] for each in self.recordings if each.get("layers")]
        if not parts or not parts[0]["step"]:
            return {}
        names, looks = parts[0]["names"], [dict(zip(part["step"], range(len(part["step"])))) for part in parts]
        parts = parts if self.sharded else parts[:1]
        steps = [step for step in parts[0]["step"] if all(step in look for look, _ in zip(looks, parts))]
        found = {}
        for name in OF_LAYERS:
            of_step = ([part[name][look[step]] for part, look in zip(parts, looks)] for step in steps)
            found[name] = Matrix(steps, names, [[_sum(values) for values in zip(*rows)] for rows in of_step])
        return found

    def trust_ratios(self) -> Matrix | None:
        """|dW| / |W| of each layer at each look."""
        return self._of_layers(lambda layer: _root(layer["update"], layer["weight"]))

    def cosines(self) -> Matrix | None:
        """Cosine of the step and of descent, -<dW, g> / (|dW| |g|)."""
        return self._of_layers(
            lambda layer: (
                None
                if None in layer.values() or not layer["update"] * layer["gradient"]
                else max(-1.0, min(1.0, -layer["dot"] / math.sqrt(layer["update"] * layer["gradient"])))
            )
        )

    def _of_layers(self, number: Callable[[dict[str, Any]], Number]) -> Matrix | None:
        if not self.layers:
            return None
        steps, names = self.layers["weight"].steps, self.layers["weight"].names
        looks = zip(*(self.layers[name].rows for name in OF_LAYERS))
        rows = [[number(dict(zip(OF_LAYERS, values))) for values in zip(*look)] for look in looks]
        return Matrix(steps, names, rows)

    def units(self, quantity: str) -> Matrix | None:
        """A quantity of the outputs of layers. Ranks see different samples, and a unit is dead where it is on all.

        Args:
            quantity: "dead", "saturated", "rank" or "largest".

        Returns:
            The least of the ranks' shares, the largest of ranks and sizes; None where nothing was looked at.
        """
        parts = [each["units"] for each in self.recordings if each.get("units") and each["units"]["step"]]
        if not parts or quantity not in parts[0]:
            return None
        steps = [step for step in parts[0]["step"] if all(step in part["step"] for part in parts)]
        places = [dict(zip(part["step"], range(len(part["step"])))) for part in parts]
        join = min if quantity in ("dead", "saturated") else max
        rows = []
        for step in steps:
            looks = zip(*(part[quantity][place[step]] for part, place in zip(parts, places)))
            known = [[value for value in values if value is not None] for values in looks]
            rows.append([join(values) if values else None for values in known])
        return Matrix(steps, parts[0]["names"], rows)

    # ---------------------------------------------------------------- events
    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """What happened on any rank, in order; the same on several is one, with its ranks."""
        found = dict[tuple[Any, ...], dict[str, Any]]()
        for each in self.recordings:
            for event in each.get("events") or ():
                key = (event["step"], event["kind"], event["name"], event["text"])
                found.setdefault(key, {**event, "ranks": []})["ranks"].append(each["rank"])
        return sorted(found.values(), key=lambda event: event["step"])

    @cached_property
    def spectra(self) -> list[dict[str, Any]]:
        """Looks at the spectrum, of the first rank that has them."""
        return next((each["spectra"] for each in self.recordings if each.get("spectra")), [])

    @property
    def shadow(self) -> dict[str, Any] | None:
        """What another method would have done, of the first rank that knows."""
        return next((each["shadow"] for each in self.recordings if each.get("shadow")), None)

    def solves(self) -> list[tuple[int, int, Number, list[str]]]:
        """(step, owner, seconds, blocks) of every solve, the seconds of its owner's clock."""
        found = dict[tuple[int, int], tuple[int, int, Number, list[str]]]()
        for each in self.recordings:
            for step, owner, seconds, blocks in each.get("solved") or ():
                before = found.get((step, owner))
                if before is None or before[2] is None:
                    found[step, owner] = (step, owner, seconds, blocks)
        return [found[key] for key in sorted(found)]


def _sum(values: Sequence[Number]) -> Number:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _root(above: Number, below: Number) -> Number:
    """Of a quotient of squares."""
    return math.sqrt(above / below) if above is not None and below else None

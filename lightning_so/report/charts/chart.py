"""A chart of the page, and what charts have in common.

Names of layers and files are data in all of them, never field names nor parts of an expression, which Vega would run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_so.report.run import Number

#: Marks that a browser draws without a pause; charts that could have more leave some out, and say so.
MARKS = 12_000
#: Digits that are kept of numbers of charts.
DIGITS = 5
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Table:
    """The main numbers of a chart, to be read.

    Attributes:
        head: Of each column.
        rows: Texts.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: For links.
        title: Its heading.
        said: What it shows, in sentences, with its main numbers.
        spec: Vega-Lite, without data.
        data: Columns by the name of the data.
        table: Its main numbers.
        wide: Whether it takes the whole width of the page.
        note: How to read it; empty where that is plain.
    """

    name: str
    title: str
    said: str
    spec: Mapping[str, Any]
    data: Mapping[str, Columns]
    table: Table | None = None
    wide: bool = False
    note: str = ""

    @property
    def marks(self) -> int:
        """How many there are, about."""
        return sum(len(next(iter(columns.values()), ())) for columns in self.data.values())

    @property
    def letters(self) -> int:
        """Of the longest name in its legend."""
        parts = [self.spec, *self.spec.get("layer", ())]
        colours = [part["encoding"]["color"] for part in parts if "color" in part.get("encoding", {})]
        names = [name for colour in colours for name in colour["scale"].get("domain", ()) if isinstance(name, str)]
        return max(map(len, names), default=0)


@dataclass(frozen=True)
class Missing:
    """A chart without data.

    Attributes:
        title: Its heading.
        how: What would record it.
    """

    title: str
    how: str


@dataclass(frozen=True)
class Axis:
    """What is along one direction of a chart.

    Attributes:
        column: Of the data.
        title: What people read.
        log: Whether it is logarithmic.
        form: Of its numbers, as d3 has it.
        more: Other keys of the encoding.
    """

    column: str
    title: str
    log: bool = False
    form: str = ".4~g"
    more: Mapping[str, Any] = field(default_factory=dict)

    def encoding(self) -> dict[str, Any]:
        """In Vega-Lite."""
        scale = {"type": "log", "nice": False} if self.log else {"zero": False, "nice": False}
        shown = {"title": self.title, "axis": {"format": self.form}}
        return {"field": self.column, "type": "quantitative", "scale": scale, **shown, **self.more}

    def tooltip(self) -> dict[str, Any]:
        """Its number where the pointer is."""
        return {"field": self.column, "type": "quantitative", "title": self.title, "format": ".5~g"}


STEP = Axis("step", "step", form=",d")


def rounded(numbers: Sequence[Number]) -> list[Number]:
    """Numbers of as many digits as a chart shows.

    Args:
        numbers: The numbers.

    Returns:
        As many.
    """
    return [None if number is None else float(f"{number:.{DIGITS}g}") for number in numbers]


def logarithmic(numbers: Sequence[Number], times: float = 20.0) -> bool:
    """Whether numbers are all above zero, and over more than a factor.

    Args:
        numbers: The numbers.
        times: The factor.

    Returns:
        Whether they are.
    """
    known = [number for number in numbers if number is not None]
    return bool(known) and min(known) > 0 and max(known) > times * min(known)


def hover(fields: Sequence[str]) -> dict[str, Any]:
    """A parameter that holds what is nearest to the pointer.

    Args:
        fields: What tells marks apart.

    Returns:
        Vega-Lite's.
    """
    select = {"type": "point", "fields": list(fields), "nearest": True, "on": "pointermove", "clear": "pointerout"}
    return {"name": "hover", "select": select}


def lines(
    x: Axis,
    y: Axis,
    by: str,
    names: Sequence[str],
    *,
    height: int = 220,
    under: Sequence[dict[str, Any]] = (),
    more: Sequence[Axis] = (),
) -> dict[str, Any]:
    """Lines, one of each series, that tell their numbers.

    Args:
        x: Along.
        y: Up.
        by: The field that tells series apart.
        names: The series, which are the colours in their order.
        height: In pixels.
        under: Layers below.
        more: Other numbers to tell where the pointer is.

    Returns:
        Vega-Lite, of the data of `thin.series`.
    """
    colour = {"field": by, "type": "nominal", "scale": {"domain": list(names)}, "title": None}
    colour["legend"] = {} if len(names) > 1 else None
    series = [{"field": by, "type": "nominal", "title": by}] if len(names) > 1 else []
    told = [axis.tooltip() for axis in (x, y, *more)]
    shown = {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0}
    encoding = {"x": x.encoding(), "y": y.encoding(), "color": colour}
    return {
        "height": height,
        "layer": [
            *under,
            {"data": {"name": "main"}, "mark": {"type": "line"}, "encoding": encoding},
            {
                "data": {"name": "near"},
                "params": [hover([x.column, by])],
                "mark": {"type": "point", "style": "near"},
                "encoding": {**encoding, "opacity": shown, "tooltip": [*told, *series]},
            },
        ],
    }


def guide(field_: str, axis: str, name: str) -> dict[str, Any]:
    """A layer of thin lines across the chart, each with its text where the pointer is.

    Args:
        field_: Of the data, where a line is; "said" is its text.
        axis: "x" or "y".
        name: Of the data.

    Returns:
        Vega-Lite.
    """
    place = {"field": field_, "type": "quantitative"}
    return {
        "data": {"name": name},
        "mark": {"type": "rule", "style": "guide"},
        "encoding": {axis: place, "tooltip": {"field": "said", "type": "nominal", "title": "what"}},
    }


def joined(parts: Sequence[Columns]) -> dict[str, list[Any]]:
    """Columns one below the other.

    Args:
        parts: Of the same columns.

    Returns:
        The columns.
    """
    return {name: [value for part in parts for value in part[name]] for name in parts[0]} if parts else {}

"""The printed plan: where every parameter went and why. Nothing is routed silently."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightning_so.contract.block import Block
from lightning_so.contract.method import Method
from lightning_so.core.plan.folding import Line, folded


@dataclass(frozen=True)
class PlanRow:
    """One parameter in the plan.

    Attributes:
        name: Full name.
        kind: Type of the layer that holds it.
        shape: Its shape.
        numel: Its elements.
        role: "hidden", "embedding", "head" or "base".
        verdict: What happens to it; "base: " and the reason where it stays on the base.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    numel: int
    role: str
    verdict: str

    @property
    def covered(self) -> bool:
        """Whether a method works on it."""
        return not self.verdict.startswith("base: ")


@dataclass(frozen=True)
class Plan:
    """Where every parameter of one optimizer went, and why.

    Attributes:
        method: The method or the rules, as text.
        base: Class name of the base optimizer.
        rows: One a parameter.
        assigned: The blocks that a method works on, and the method of each.
        frozen: Parameters by name that one will work on once they are trained.
        costs: By name of a parameter, extra bytes held for its blocks and the ranks that solve their units.
        layout: Where matrices are whole and what a rank sends per step; empty in one process.
        memory: What is held between steps, where curvature is to hold less; empty else.
        labels: Whose labels Fisher matrices are of, by method; texts that may change with the first loss.
        ways: How what can be computed in several ways is; empty where nothing was chosen.
    """

    method: str
    base: str
    rows: list[PlanRow]
    assigned: Mapping[Block, Method]
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    costs: Mapping[str, tuple[int, list[int]]] = field(default_factory=dict)
    layout: str = ""
    ways: str = ""
    memory: str = ""
    labels: Sequence[object] = ()

    @property
    def blocks(self) -> list[Block]:
        """Those that a method works on."""
        return list(self.assigned)

    @property
    def elements(self) -> tuple[int, int]:
        """Those that a method works on, and all of the optimizer's that are trained."""
        trained = [row for row in self.rows if row.name not in self.frozen]
        return sum(row.numel for row in trained if row.covered), sum(row.numel for row in trained)

    @property
    def coverage(self) -> float:
        """Share of the optimizer's elements that a method works on; frozen matrices are left out."""
        covered, total = self.elements
        return covered / total if total else 0.0

    def by_type(self) -> dict[str, tuple[int, int, float]]:
        """By type of layer: parameters that are covered, all of them, and the share of their elements."""
        found = {}
        for kind in dict.fromkeys(row.kind for row in self.rows):
            rows = [row for row in self.rows if row.kind == kind]
            covered = [row for row in rows if row.covered]
            share = sum(row.numel for row in covered) / max(1, sum(row.numel for row in rows))
            found[kind] = len(covered), len(rows), share
        return found

    def __str__(self) -> str:
        """The plan as two tables: by parameter, and by type of layer; of many parameters, those alike as one line."""
        kinds, lines = self.by_type(), folded([self._line(row) for row in self.rows])
        width = max([len(line.name) for line in lines] + [len(kind) for kind in kinds] + [9])
        extra = sum(size for size, _ in self.costs.values())
        weights = {block.parameter for block in self.blocks}
        shapes = [" x ".join([str(line.count)] * (line.count > 1) + [_shape(line.shape)]) for line in lines]
        wide = max([14, *map(len, shapes)])
        said = [
            f"{self.method} on {self.base}: {len(weights)} of {len(self.rows)} parameters, "
            f"{100 * self.coverage:.1f} % of the elements, {amount(extra)} of extra state",
            *(f"  {line}" for line in (self.layout, self.ways, self.memory, *map(str, self.labels)) if line),
        ]
        for line, shape in zip(lines, shapes, strict=True):
            said.append(f"  {line.name:<{width}}  {shape:>{wide}}  {line.verdict}{_cost(line)}")
        said.append("By type of layer:")
        for kind, (covered, count, share) in kinds.items():
            said.append(f"  {kind:<{width}}  {f'{covered} of {count}':>{wide}}  {100 * share:.1f} % of the elements")
        return "\n".join(said)

    def _line(self, row: PlanRow) -> Line:
        size, owners = self.costs.get(row.name, (None, []))
        return Line(row.name, row.shape, row.verdict, size, tuple(owners))


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _cost(line: Line) -> str:
    """What is held for a line's parameters, and who solves them."""
    if line.size is None:
        return ""
    each = " each" if line.count > 1 else ""
    names = f"rank {' and '.join(map(str, line.owners))}"
    names = f"{len(line.owners)} ranks" if line.count > 1 and len(line.owners) > 2 else names
    return f"; {amount(line.size)}{each}{f', solved by {names}' if line.owners else ''}"


def amount(size: float) -> str:
    """A number of bytes in words.

    Args:
        size: Bytes.

    Returns:
        Them in MB, from 1e9 on in GB.

    Example:
        >>> amount(2.5e5), amount(36_623e6)
        ('0.25 MB', '36.6 GB')
    """
    if size >= 1e9:
        return f"{size / 1e9:.3g} GB"
    return f"{size / 1e6:.2g} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"

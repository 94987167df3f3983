"""The printed plan: where every parameter went and why. Nothing is routed silently."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_so.contract.block import Block
from lightning_so.contract.method import Method


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
        costs: By name of a parameter, extra bytes held for its blocks and the ranks that solve their units.
        layout: Where matrices are whole and what a rank sends per step; empty in one process.
        labels: Whose labels Fisher matrices are of, by method; texts that may change with the first loss.
        ways: How what can be computed in several ways is; empty where nothing was chosen.
    """

    method: str
    base: str
    rows: list[PlanRow]
    assigned: Mapping[Block, Method]
    costs: Mapping[str, tuple[int, list[int]]] = field(default_factory=dict)
    layout: str = ""
    ways: str = ""
    labels: Sequence[object] = ()

    @property
    def blocks(self) -> list[Block]:
        """Those that a method works on."""
        return list(self.assigned)

    @property
    def coverage(self) -> float:
        """Share of the optimizer's elements that a method works on."""
        total = sum(row.numel for row in self.rows)
        return sum(row.numel for row in self.rows if row.covered) / total if total else 0.0

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
        """The plan as two tables: by parameter, and by type of layer."""
        kinds = self.by_type()
        width = max([len(row.name) for row in self.rows] + [len(kind) for kind in kinds] + [9])
        extra = sum(size for size, _ in self.costs.values())
        weights = {block.parameter for block in self.blocks}
        lines = [
            f"{self.method} on {self.base}: {len(weights)} of {len(self.rows)} parameters, "
            f"{100 * self.coverage:.1f} % of the elements, {megabytes(extra)} of extra state",
            *(f"  {line}" for line in (self.layout, self.ways, *map(str, self.labels)) if line),
        ]
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            lines.append(f"  {row.name:<{width}}  {shape:>14}  {row.verdict}{self._cost(row.name)}")
        lines.append("By type of layer:")
        for kind, (covered, count, share) in kinds.items():
            lines.append(f"  {kind:<{width}}  {f'{covered} of {count}':>14}  {100 * share:.1f} % of the elements")
        return "\n".join(lines)

    def _cost(self, name: str) -> str:
        if name not in self.costs:
            return ""
        size, owners = self.costs[name]
        solvers = f", solved by rank {' and '.join(map(str, owners))}" if owners else ""
        return f"; {megabytes(size)}{solvers}"


def megabytes(size: float) -> str:
    """A number of bytes, in MB."""
    return f"{size / 1e6:.2g} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"

"""Which method works on which parameter, and the printed plan that says so: nothing is routed silently."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.actions.moments import Base
from lightning_so.core import tappable
from lightning_so.core.block import Block, Tap
from lightning_so.core.errors import ConfigError
from lightning_so.core.method import Method, Taps

#: What wrappers put into names; stripped so that keys do not depend on how the model was wrapped.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.", "_checkpoint_wrapped_module.")
ROLES = ("base", "hidden", "embedding", "head")


@dataclass(frozen=True)
class Row:
    """One parameter in the plan."""

    name: str
    shape: tuple[int, ...]
    numel: int
    role: str
    verdict: str


@dataclass(frozen=True)
class Plan:
    """Where every parameter of one optimizer went, and why.

    Attributes:
        method: The method, as text.
        base: Class name of the base optimizer.
        rows: One a parameter.
        blocks: Those that the method works on.
        costs: By block name, extra bytes held for it and the ranks that solve its units.
    """

    method: str
    base: str
    rows: list[Row]
    blocks: list[Block]
    costs: Mapping[str, tuple[int, list[int]]] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """Share of the optimizer's elements that the method works on."""
        total = sum(row.numel for row in self.rows)
        return sum(p.numel() for block in self.blocks for p in block.params) / total if total else 0.0

    def __str__(self) -> str:
        """The plan as a table."""
        width = max([len(row.name) for row in self.rows] + [9])
        extra = sum(size for size, _ in self.costs.values())
        lines = [
            f"{self.method} on {self.base}: {len(self.blocks)} of {len(self.rows)} parameters, "
            f"{100 * self.coverage:.1f} % of the elements, {megabytes(extra)} of extra state"
        ]
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            lines.append(f"  {row.name:<{width}}  {shape:>14}  {row.verdict}{self._cost(row.name)}")
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


def clean(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def route(
    model: nn.Module, optimizer: Optimizer, method: Method, base: Base, roles: Mapping[str, Sequence[str]] | None = None
) -> Plan:
    """Decide for every parameter of the optimizer.

    Args:
        model: The model whose names are used.
        optimizer: The base optimizer.
        method: The method.
        base: The optimizer's entry in the registry.
        roles: Overrides, role -> globs on names; a role is "base" (leave alone), "hidden", "embedding" or "head".

    Returns:
        The plan.

    Raises:
        ConfigError: If an override names no role or no parameter, the base cannot be used, or nothing is covered.
    """
    # A tied weight appears once, under its first name: named_parameters removes duplicates.
    names = {param: clean(name) for name, param in model.named_parameters()}
    found = structural_roles(model)
    tapped = tappable.find(model) if method.taps is Taps.ROWS else None
    rows, blocks = [], []
    overrides = _overrides(roles, list(names.values()))
    for index, group in enumerate(optimizer.param_groups):
        reason = method.refuse(base, group)
        if reason:
            raise ConfigError(
                f"{type(method).__name__} on {type(optimizer).__name__} (param_groups[{index}]): {reason}"
            )
        for position, param in enumerate(group["params"]):
            name = names.get(param, f"optimizer.param_groups[{index}][{position}]")
            role = overrides.get(name) or found.get(param, "hidden")
            owner = next((block for block in blocks if block.bias is param), None)
            if owner is not None:
                rows.append(Row(name, tuple(param.shape), param.numel(), role, f"with {owner.name}"))
                continue
            if param not in names:
                verdict = "not a parameter of the model"
            else:
                vector = isinstance((tapped or {}).get(param), Tap)  # a scale, whose layer says what it is
                verdict = _unsuitable(param, role, vector) or (_thin(param) if tapped is None else None)
            block = None if verdict else _block(name, param, index, role, group, tapped)
            verdict = block if isinstance(block, str) else verdict
            if isinstance(block, Block):
                verdict = method.exclude(block)
                if not verdict:
                    blocks.append(block)
            verdict = f"base: {verdict}" if verdict else f"{role}: {method.describe(base, group, blocks[-1])}"
            rows.append(Row(name, tuple(param.shape), param.numel(), role, verdict))
    plan = Plan(str(method), type(optimizer).__name__, rows, blocks)
    if not blocks:
        raise ConfigError(
            f"coverage is 0: {type(method).__name__} works on none of the {len(rows)} parameters of "
            f"{type(optimizer).__name__}. Remove the callback, or route parameters to it.\n{plan}"
        )
    return plan


def _block(
    name: str, param: nn.Parameter, index: int, role: str, group: dict, tapped: dict[Tensor, Tap | str] | None
) -> Block | str:
    """The block of a weight, with its bias where rows are needed and both are in one group; or why there is none."""
    block = Block(name, param, index, role, param.shape[0], param.numel() // param.shape[0])
    if tapped is None:
        return block
    tap = tapped.get(param, "not the weight of a layer")
    if isinstance(tap, str):
        return tap
    block.tap, bias = tap, getattr(tap.module, "bias", None) if tap.layer.biased else None
    if isinstance(bias, nn.Parameter) and any(bias is p for p in group["params"]) and bias.requires_grad:
        block.bias = bias
        block.cols += 1
    return block


def structural_roles(model: nn.Module) -> dict[Tensor, str]:
    """Embeddings and the output head, found by structure and not by name.

    A head is a layer tied to an Embedding (one block, under its first name), or the last Linear in registration order
    whose out_features equals some Embedding's num_embeddings.

    Args:
        model: The model.

    Returns:
        The role of each parameter that is not hidden.
    """
    embeddings = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    vocabularies = {m.num_embeddings for m in embeddings}
    roles: dict[Tensor, str] = {m.weight: "embedding" for m in embeddings}
    widths = {m.embedding_dim for m in embeddings}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if any(m.weight in roles for m in linears):
        return roles  # tied: the head is the embedding
    # A model whose width equals its number of positions has hidden layers of the head's size: such a layer is the head
    # only if no Linear follows it.
    heads = [
        m for m in linears if m.out_features in vocabularies and (m.out_features not in widths or m is linears[-1])
    ]
    if heads:
        roles[heads[-1].weight] = "head"
    return roles


def _overrides(roles: Mapping[str, Sequence[str]] | None, names: list[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for role, globs in (roles or {}).items():
        if role not in ROLES:
            raise ConfigError(f"route={{{role!r}: ...}}: the role must be one of {', '.join(ROLES)}.")
        for glob in [globs] if isinstance(globs, str) else globs:
            hits = [name for name in names if fnmatchcase(name, glob)]
            if not hits:
                raise ConfigError(f"route={{{role!r}: [{glob!r}]}} matches no parameter; names are like {names[:3]}.")
            chosen.update(dict.fromkeys(hits, role))
    return chosen


def _unsuitable(param: Tensor, role: str, vector: bool) -> str | None:
    """The reason why no method of matrices can work on the parameter, or None."""
    if role == "base":
        return "routed to the base"
    if param.numel() == 0:
        return "empty"
    if param.is_complex():
        return "complex"
    if not param.is_floating_point():
        return f"dtype {param.dtype}"
    if param.ndim < 2 and not vector:
        return "fewer than two dimensions"
    return None


def _thin(param: Tensor) -> str | None:
    """The reason why a matrix has no curvature between its gradients, or None."""
    if param.shape[0] == 1 or param.numel() == param.shape[0]:
        return "a single row or column"
    return None

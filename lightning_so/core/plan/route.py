"""Which method works on which parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_so.comm.wrappers import clean
from lightning_so.contract.block import Block, Tap
from lightning_so.contract.method import Method, Taps
from lightning_so.core.host import Host
from lightning_so.core.plan import tappable
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.plan.roles import overrides, structural_roles
from lightning_so.core.plan.table import Plan, PlanRow
from lightning_so.errors import ConfigError, UnusableError


def refuse_layers(mixture: Mixture, host: Host) -> None:
    """Refuse methods whose curvature is of whole layers.

    Args:
        mixture: The rules that choose a method.
        host: The training.

    Raises:
        ConfigError: If a rule has one and ranks work apart.
    """
    methods = [value for value in mixture.rules.values() if not isinstance(value, str)]
    tapped = sorted({type(method).__name__ for method in methods if method.taps is Taps.ROWS})
    if host.access.local and tapped:
        raise ConfigError(
            f"sharding='local' takes a rank's rows for the matrix, and the factors of {' and '.join(tapped)} are of "
            "whole layers: use sharding='exact', or SOAP, Shampoo or Muon."
        )


def route(host: Host, mixture: Mixture, roles: Mapping[str, Sequence[str]] | None = None) -> Plan:
    """Decide for every parameter of the optimizer.

    Args:
        host: The training: its model's names are used.
        mixture: The rules that choose a method.
        roles: Overrides, role -> globs on names; a role is "base" (leave alone), "hidden", "embedding" or "head".

    Returns:
        The plan.

    Raises:
        ConfigError: If an override names no role or no parameter, a rule decides nothing or the base cannot be used.
    """
    router = Router(host, mixture, roles)
    rows = [
        router.row(param, index, group, f"optimizer.param_groups[{index}][{position}]")
        for index, group in enumerate(host.groups)
        for position, param in enumerate(group["params"])
    ]
    # A bias may come before its weight in the optimizer's order.
    joined = {router.names[block.bias]: block.name for block in router.assigned if block.bias is not None}
    rows = [replace(row, verdict=f"with {joined[row.name]}") if row.name in joined else row for row in rows]
    for position, block in enumerate(router.assigned):
        block.position = position
    return Plan(str(mixture), type(host.optimizer).__name__, rows, router.assigned)


class Router:
    """Decides parameter by parameter, and collects the blocks.

    Attributes:
        assigned: Those that a method works on, and the method of each.
    """

    def __init__(self, host: Host, mixture: Mixture, roles: Mapping[str, Sequence[str]] | None) -> None:
        """Look at the model."""
        # A tied weight appears once, under its first name: named_parameters removes duplicates.
        self.names = {param: clean(name) for name, param in host.model.named_parameters()}
        self.holders: dict[Tensor, nn.Module] = {}
        for module in host.model.modules():
            for param in module.parameters(recurse=False):
                self.holders.setdefault(param, module)
        self.host, self.mixture = host, mixture
        mixture.check({name: self.holders[param] for param, name in self.names.items()})
        self.roles: dict[Tensor, str] = structural_roles(host.model)
        self.overrides = overrides(roles, list(self.names.values()))
        self.tapped, self.assigned = tappable.find(host.model), dict[Block, Method]()

    def row(self, param: nn.Parameter, index: int, group: dict, fallback: str) -> PlanRow:
        """Decide for one parameter.

        Args:
            param: The parameter.
            index: Index of its param group.
            group: The group.
            fallback: What to call it if it is not the model's.

        Returns:
            Its row in the plan; of a bias, as if it joined no weight.

        Raises:
            UnusableError: If its method cannot use the base.
        """
        name = self.names.get(param, fallback)
        role = self.overrides.get(name) or self.roles.get(param, "hidden")
        kind = type(self.holders[param]).__name__ if param in self.names else "none"
        verdict = self._verdict(param, name, role, index, group)
        shape = self.host.access.shape(param)
        return PlanRow(name, kind, tuple(shape), shape.numel(), role, verdict)

    def _verdict(self, param: nn.Parameter, name: str, role: str, index: int, group: dict) -> str:
        if param not in self.names:
            return "base: not a parameter of the model"
        method = self._method(param)
        if method is None:
            key = self.mixture.key(name, self.holders[param])
            return "base: no rule matches it" if key is None else f"base: rule {key!r}"
        found = self._block(param, name, role, index, group, method)
        if isinstance(found, str):
            return f"base: {found}"
        if reason := method.refuse(self.host.base, group):
            optimizer = type(self.host.optimizer).__name__
            raise UnusableError(f"{type(method).__name__} on {optimizer} (param_groups[{index}]): {reason}")
        self.assigned[found] = method
        label = f"{type(method).__name__} " if len(self.mixture.rules) > 1 else ""
        return f"{role}: {label}{method.describe(self.host.base, group, found)}"

    def _method(self, param: nn.Parameter) -> Method | None:
        return self.mixture.choose(self.names[param], self.holders[param])

    def _block(self, param: nn.Parameter, name: str, role: str, index: int, group: dict, method: Method) -> Block | str:
        """The block of a weight, or why there is none."""
        tap = self.tapped.get(param, "not the weight of a layer") if method.taps is Taps.ROWS else None
        vector = tap is not None and param in self.tapped  # a scale or a bias, whose layer says what it is
        shape = self.host.access.shape(param)
        unfit = None if role == "base" else self.host.access.unfit(param)
        reason = unfit or _unsuitable(param, shape, role, vector) or (_thin(shape) if tap is None else None)
        if reason or isinstance(tap, str):
            return reason or str(tap)
        block = Block(name, param, index, role, shape[0], shape.numel() // shape[0], shape)
        if tap is not None:
            self._join(block, tap, group, method)
        return method.exclude(block) or block

    def _join(self, block: Block, tap: Tap, group: dict, method: Method) -> None:
        """Where rows are needed, a bias in the same group and under the same rule is the last column."""
        block.tap, bias = tap, tap.bias
        if bias is None or not bias.requires_grad or not any(bias is p for p in group["params"]):
            return
        if self._method(bias) is method and self.overrides.get(self.names[bias]) != "base":
            block.bias = bias
            block.cols += 1


def _unsuitable(param: Tensor, shape: torch.Size, role: str, vector: bool) -> str | None:
    """The reason why no method of matrices can work on the parameter, or None."""
    if role == "base":
        return "routed to the base"
    if shape.numel() == 0:
        return "empty"
    if param.is_complex():
        return "complex"
    if not param.is_floating_point():
        return f"dtype {param.dtype}"
    if len(shape) < 2 and not vector:
        return "fewer than two dimensions"
    return None


def _thin(shape: torch.Size) -> str | None:
    """The reason why a matrix has no curvature between its gradients, or None."""
    if shape[0] == 1 or shape.numel() == shape[0]:
        return "a single row or column"
    return None

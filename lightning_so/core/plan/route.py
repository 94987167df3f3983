"""Which method works on which parameter."""

from collections.abc import Collection, Set
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_so.comm.wrappers import clean
from lightning_so.contract.block import Block, Tap
from lightning_so.contract.memory import Memory
from lightning_so.contract.method import Method, Taps
from lightning_so.core.host import Host
from lightning_so.core.plan import parts, tappable
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.plan.parts import View
from lightning_so.core.plan.roles import Route, overrides, structural_roles
from lightning_so.core.plan.table import Plan, PlanRow
from lightning_so.errors import ConfigError, UnusableError

#: Of a matrix that is not trained: nothing is held for it, as the optimizer holds nothing.
FROZEN = "base: frozen, and taken in at the step at which it is trained"
#: Of a vector that is no column either.
THIN = "base: fewer than two dimensions"


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


def route(
    host: Host,
    mixture: Mixture,
    wanted: Route | None = None,
    memory: Memory | None = None,
    out: Collection[Tensor] | None = None,
) -> Plan:
    """Decide for every parameter of the optimizer.

    Args:
        host: The training: its model's names are used.
        mixture: The rules that choose a method.
        wanted: Overrides, role -> globs on names; a role is "base" (leave alone), "hidden", "embedding" or "head". And
            "split" -> globs and how many matrices a parameter is.
        memory: How curvature is to hold less.
        out: Parameters that are left out while they are frozen; None for those without `requires_grad`.

    Returns:
        The plan. Where it would have no block, frozen parameters are in it.

    Raises:
        ConfigError: If an override names no role or no parameter, or cannot be followed; if a rule decides nothing or
            the base cannot be used.
    """
    out = {param for param in host.params if not param.requires_grad} if out is None else set(out)
    plan = _routed(Router(host, mixture, wanted, memory, out))
    return plan if plan.assigned or not plan.frozen else _routed(Router(host, mixture, wanted, memory, set()))


def _routed(router: "Router") -> Plan:
    """The plan of all parameters of an optimizer."""
    host, mixture = router.host, router.mixture
    rows = [
        router.row(param, index, group, f"optimizer.param_groups[{index}][{position}]")
        for index, group in enumerate(host.groups)
        for position, param in enumerate(group["params"])
    ]
    # A bias may come before its weight in the optimizer's order.
    joined = {router.names[block.bias]: block.name for block in router.assigned if block.bias is not None}
    rows = [replace(row, verdict=f"with {joined[row.name]}") if row.name in joined else row for row in rows]
    apart = router.apart()
    rows = [replace(row, verdict=apart[row.name]) if row.verdict == THIN and row.name in apart else row for row in rows]
    for position, block in enumerate(router.assigned):
        block.position = position
    return Plan(str(mixture), type(host.optimizer).__name__, rows, router.assigned, router.frozen)


class Router:
    """Decides parameter by parameter, and collects the blocks.

    Attributes:
        assigned: Those that a method works on, and the method of each.
        frozen: Parameters by name that one would work on if they were trained.
    """

    def __init__(
        self, host: Host, mixture: Mixture, wanted: Route | None, memory: Memory | None, out: Set[Tensor]
    ) -> None:
        """Look at the model."""
        # A tied weight appears once, under its first name: named_parameters removes duplicates.
        self.names = {param: clean(name) for name, param in host.model.named_parameters()}
        self.holders: dict[Tensor, nn.Module] = {}
        for module in host.model.modules():
            for param in module.parameters(recurse=False):
                self.holders.setdefault(param, module)
        self.host, self.mixture, self.memory = host, mixture, memory
        mixture.check({name: self.holders[param] for param, name in self.names.items()})
        self.roles: dict[Tensor, str] = structural_roles(host.model)
        names = list(self.names.values())
        self.overrides, self.counts = overrides(wanted, names), parts.counts(wanted, names)
        self.kernels = parts.kernels(host.model)
        self.tapped, self.assigned = tappable.find(host.model), dict[Block, Method]()
        self.out, self.frozen = out, dict[str, Tensor]()

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
        role = self.overrides.get(name) or self.roles.get(param) or self._structural_role(param)
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
        found = self._blocks(param, name, role, index, group, method)
        if isinstance(found, str):
            return f"base: {found}"
        if reason := method.refuse(self.host.base, group):
            optimizer = type(self.host.optimizer).__name__
            raise UnusableError(f"{type(method).__name__} on {optimizer} (param_groups[{index}]): {reason}")
        if param in self.out:
            self.frozen[name] = param
            return FROZEN
        self.assigned |= dict.fromkeys(found, method)
        label = f"{type(method).__name__} " if len(self.mixture.rules) > 1 else ""
        matrices = self._view(param, name).described(kernel=param in self.kernels)
        return f"{role}{matrices}: {label}{method.describe(self.host.base, group, found[0])}"

    def apart(self) -> dict[str, str]:
        """Why a bias is no column of its weight's matrix, by its name, where the optimizer has them in two groups."""
        found = {}
        for block in self.assigned:
            bias = None if block.tap is None else block.tap.bias
            group = self.host.groups[block.group]["params"]
            if bias is not None and not any(bias is param for param in group):
                found[self.names[bias]] = f"base: no column of {block.name}, which is in another param group"
        return found

    def _method(self, param: nn.Parameter) -> Method | None:
        return self.mixture.choose(self.names[param], self.holders[param])

    def _blocks(
        self, param: nn.Parameter, name: str, role: str, index: int, group: dict, method: Method
    ) -> list[Block] | str:
        """The blocks of a weight, or why there are none."""
        tap = self.tapped.get(param, "not the weight of a layer") if method.taps is Taps.ROWS else None
        vector = tap is not None and param in self.tapped  # a scale or a bias, whose layer says what it is
        shape = self.host.access.shape(param)
        unfit = None if role == "base" else self.host.access.unfit(param)
        view = self._view(param, name)
        if reason := unfit or _unsuitable(param, shape, role, vector):
            return reason
        if tap is not None and name in self.counts:
            raise ConfigError(
                f"route={{'split': {{{name!r}: {self.counts[name]}}}}}: {type(method).__name__} sees the layer as a "
                "whole: give the weight to SOAP, Shampoo or Muon by a rule of a Mixture, or take it out of 'split'."
            )
        if isinstance(tap, str):
            return tap
        if tap is not None:
            block = Block(name, param, index, role, shape[0], shape.numel() // shape[0], shape, memory=self.memory)
            self._join(block, tap, group, method)
            return method.exclude(self.host.base, block) or [block]
        if min(view.rows, view.cols) == 1:
            return "a single row or column"
        blocks = [
            Block(
                name if of is None else f"{name}[{of.index}]",
                param,
                index,
                role,
                view.rows,
                view.cols,
                view.part,
                part=of,
                memory=self.memory,
            )
            for of in view.parts(name)
        ]
        return method.exclude(self.host.base, blocks[0]) or blocks

    def _view(self, param: nn.Parameter, name: str) -> View:
        """How a parameter is seen as matrices.

        Args:
            param: The parameter.
            name: Its full name.

        Returns:
            The view.

        Raises:
            ConfigError: If the user wants it split in a way that is not possible.
        """
        shape, kernel = self.host.access.shape(param), param in self.kernels
        if (count := self.counts.get(name)) is None:
            return View(shape, parts.rows_of(self._whole(param), kernel=kernel))
        if self.host.access.local:
            raise ConfigError(
                f"route={{'split': {{{name!r}: {count}}}}}: sharding='local' takes a rank's rows for the matrix, which "
                "are not those of a part: use sharding='exact'."
            )
        return parts.split(name, shape, count, kernel=kernel)

    def _whole(self, param: nn.Parameter) -> torch.Size:
        """Shape of a parameter over all ranks."""
        return param.shape if self.host.access.local else self.host.access.shape(param)

    def _structural_role(self, param: nn.Parameter) -> str:
        """The role of a parameter that no layer tells."""
        return "embedding" if parts.broadcast(self._whole(param), kernel=param in self.kernels) else "hidden"

    def _join(self, block: Block, tap: Tap, group: dict, method: Method) -> None:
        """Where rows are needed, a bias in the same group and under the same rule is the last column; frozen, too."""
        block.tap, bias = tap, tap.bias
        if bias is None or not any(bias is p for p in group["params"]):
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
        return THIN.removeprefix("base: ")
    return None

"""How a strategy lays a training out over ranks, and what it holds beside weights, gradients and moments."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.comm import Access, access_of
from lightning_so.comm.supposed import Spans, Supposed, SupposedAccess, by_numbers, by_rows, in_a_row
from lightning_so.core.host import Host
from lightning_so.errors import ConfigError, check_choice, check_count

STRATEGIES = ("ddp", "fsdp", "hsdp", "zero_1", "zero_2", "zero_3")


@dataclass(frozen=True)
class World:
    """Ranks, and what each holds of a parameter.

    Attributes:
        nodes: Machines.
        gpus: Ranks of each.
        strategy: One of `STRATEGIES`.
    """

    nodes: int = 1
    gpus: int = 1
    strategy: str = "ddp"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_count("plan", "--nodes", self.nodes, 1, 1_000_000)
        check_count("plan", "--gpus", self.gpus, 1, 1024)
        check_choice("plan", "--strategy", self.strategy, STRATEGIES)

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self.nodes * self.gpus

    @property
    def sharded(self) -> bool:
        """Whether ranks hold pieces of what the optimizer steps on."""
        return self.ranks > 1 and self.strategy != "ddp"

    def under(self, strategy: str) -> "World":
        """The same ranks under another strategy."""
        return replace(self, strategy=strategy)

    def spans(self, optimizer: Optimizer) -> dict[Tensor, Spans]:
        """By parameter of an optimizer, which piece each rank has."""
        groups = [group["params"] for group in optimizer.param_groups]
        if self.strategy == "hsdp":  # Pieces inside a machine, which all machines have alike.
            return {p: spans * self.nodes for params in groups for p, spans in by_rows(params, self.gpus).items()}
        cut = {"fsdp": by_rows, "zero_3": by_numbers}.get(self.strategy, in_a_row)
        return {param: spans for params in groups for param, spans in cut(params, self.ranks).items()}

    def host(self, module: nn.Module, optimizer: Optimizer, rank: int) -> Host:
        """The training of one rank.

        Args:
            module: The module.
            optimizer: The optimizer, of whole parameters.
            rank: The rank.

        Returns:
            The host, whose exchanges go nowhere.
        """
        # Refuses parameters that have no shape yet.
        whole = access_of((param for group in optimizer.param_groups for param in group["params"]), module)
        if self.ranks == 1:
            return Host.of(module, optimizer, access=whole)
        if not self.sharded:
            return Host.of(module, optimizer, world=Supposed(rank, self.ranks))
        spans = self.spans(optimizer)
        access = SupposedAccess(spans, rank)
        return Host.of(module, optimizer, access=access, world=Supposed(rank, self.ranks, [*spans.values()]))

    def parts(self, module: nn.Module, hosts: Sequence[Host]) -> dict[str, int]:
        """Bytes on a rank of the training itself, but for the optimizer's moments and activations.

        Args:
            module: The module, with gradients.
            hosts: The rank's, one an optimizer.

        Returns:
            By part.
        """
        params = [*module.parameters()]
        access: dict[Tensor, Access] = {param: host.access for host in hosts for param in host.params}

        def pieces(cut: bool, tensors: Sequence[tuple[Tensor, Tensor | None]]) -> int:
            return sum(
                whole.nbytes * (access[p].weight(p).numel() if cut and p in access else p.numel()) // max(1, p.numel())
                for p, whole in tensors
                if whole is not None
            )

        stage = int(self.strategy[-1]) if self.strategy.startswith("zero") and self.ranks > 1 else 0
        fsdp = self.sharded and not stage
        found = {
            "weights": pieces(fsdp or stage == 3, [(p, p) for p in params]) + sum(b.nbytes for b in module.buffers()),
            "gradients": pieces(fsdp or stage >= 2, [(p, p.grad) for p in params]),
        }
        if self.ranks > 1 and self.strategy == "ddp":
            found["buckets of DDP"] = found["gradients"]
        if stage:  # DeepSpeed steps on a copy in fp32 of this rank's piece, whatever the weights' precision.
            found["fp32 weights of ZeRO"] = 4 * sum(access[p].weight(p).numel() for p in access)
        return found


def strategy_of(trainer: dict[str, Any]) -> str:
    """What of `STRATEGIES` a Trainer's is.

    Args:
        trainer: The Trainer's arguments.

    Returns:
        The strategy; "ddp" where the Trainer is to choose.

    Raises:
        ConfigError: If it is none of them.
    """
    said = trainer.get("strategy") or "auto"
    name = said if isinstance(said, str) else type(said).__name__
    lower = name.lower()
    if "deepspeed" in lower:
        stage = (
            lower[-1]
            if lower[-1].isdigit()
            else str(getattr(said, "config", {}).get("zero_optimization", {}).get("stage", 2))
        )
        return f"zero_{stage}"
    if "fsdp" in lower or "modelparallel" in lower:
        return "fsdp"
    if "ddp" in lower or lower in ("auto", "singledevicestrategy"):
        return "ddp"
    raise ConfigError(f"the Trainer's strategy {name!r} is not planned: give --strategy, one of {list(STRATEGIES)}.")


def number(value: Any, unknown: int) -> int:
    """A Trainer's number of devices or nodes; what it leaves open is `unknown`."""
    if isinstance(value, list | tuple):
        return len(value)
    try:
        return int(value) if int(value) > 0 else unknown
    except (TypeError, ValueError):
        return unknown


def device_of(trainer: dict[str, Any], asked: str | None) -> torch.device:
    """For what a plan is: "cpu" or "cuda"."""
    accelerator = asked or trainer.get("accelerator") or "auto"
    return torch.device("cpu" if str(accelerator) == "cpu" else "cuda")

"""The engine for a plain torch loop: hooks on the optimizer, and nothing else changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, overload

from torch import nn
from torch.optim import Optimizer

from lightning_so.comm import SHARDINGS, access_of, ambient, unwrapped
from lightning_so.contract.memory import Memory
from lightning_so.contract.method import Method
from lightning_so.contract.vector_method import VectorMethod
from lightning_so.contract.ways import Ways
from lightning_so.core.attach.hooks import guarded, hooks
from lightning_so.core.attach.replaced import ReplacedStep
from lightning_so.core.attach.states import States
from lightning_so.core.attach.vector import AttachedVector
from lightning_so.core.checkpoint import exact_moments, plain_moments, ranks_apart
from lightning_so.core.checkpoint.header import check_header
from lightning_so.core.checkpoint.portable import FORMAT, load_state_dict, state_dict
from lightning_so.core.engine import Engine
from lightning_so.core.host import Host
from lightning_so.core.options import Options, Overhead
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.plan.roles import Route
from lightning_so.errors import ConfigError, check_choice
from lightning_so.linalg.products import PRODUCTS


class Attached(Engine):
    """An engine that hooks itself into its optimizer; made by `attach`."""

    def __init__(self, host: Host, options: Options) -> None:
        """See `Engine`; hooks itself in."""
        super().__init__(host, options)
        handles = hooks(self)
        self._hooks = [*handles, States(self)]
        self._step = ReplacedStep(self.optimizer, "_lightning_so", self, partial(guarded, self, handles))
        self.arm()

    def detach(self) -> None:
        """Leave: the hooks go, the optimizer's moments return to plain coordinates, and it goes on alone."""
        for handle in self._hooks:
            handle.remove()
        self.disarm()
        self._step.take_back()
        self.depart()
        self.host.world.close()

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Have the optimizer's moments in plain coordinates inside the context, where ranks hold pieces of them.

        A collective: enter it on every rank, and take the optimizer's state inside. Elsewhere
        `optimizer.state_dict()` is plain without.
        """
        with plain_moments.plainly(self.parts):
            self.aside = True
            try:
                yield
            finally:
                self.aside = False

    def state_dict(self) -> dict[str, Any]:
        """See `checkpoint.portable.state_dict`, with the exact moments of blocks that rotate; a collective as that is.

        Save it beside the optimizer's own, which is plain.

        Returns:
            The state; where ranks work apart it is one of all.
        """
        state = {**state_dict(self.parts), "moments": exact_moments.moments(self.parts)}
        return ranks_apart.together(self.parts, state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `checkpoint.portable.load_state_dict`; load the optimizer's own first.

        A state without moments is one of before they were in it: then those of the optimizer are the exact ones.
        """
        self.follow()
        check_header(state, FORMAT, self.plan.method)
        own = ranks_apart.own(self.parts, state)
        self.follow(state=own)
        self.arm()  # What was observed since the last step goes with what is loaded over.
        with ranks_apart.refused_together(self.host):
            load_state_dict(self.parts, own)
            if "moments" in own:
                exact_moments.restore_moments(self.parts, own["moments"])
        # What the coming step watches hangs on its number, which has changed.
        self.arm()


@overload
def attach(
    model: nn.Module, optimizer: Optimizer, method: VectorMethod, *, product: str = "difference"
) -> AttachedVector: ...


@overload
def attach(
    model: nn.Module,
    optimizer: Optimizer,
    method: Method | Mixture | None = None,
    *,
    route: Route | None = None,
    min_coverage: float = 0.0,
    reduction: str | None = None,
    verify_every: int = 0,
    compare_every: int = 0,
    lag: int = 0,
    sharding: str = "exact",
    max_overhead: float | Overhead | None = None,
    ways: Ways | None = None,
    lengths: str = "measured",
    memory: Memory | float | None = None,
    balance: bool = False,
) -> Attached: ...


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    method: Method | Mixture | VectorMethod | None = None,
    *,
    route: Route | None = None,
    min_coverage: float = 0.0,
    reduction: str | None = None,
    verify_every: int = 0,
    compare_every: int = 0,
    lag: int = 0,
    sharding: str = "exact",
    max_overhead: float | Overhead | None = None,
    ways: Ways | None = None,
    lengths: str = "measured",
    memory: Memory | float | None = None,
    balance: bool = False,
    product: str = "difference",
) -> Attached | AttachedVector:
    """Put a method in front of an optimizer in a plain torch loop.

    Call `zero_grad`, `backward`, clipping and `optimizer.step()` as always. In an initialised `torch.distributed` world
    every rank calls `attach` at the same point; the gradients must be reduced (DDP) when the optimizer steps.

    Args:
        model: The model whose parameter names are used.
        optimizer: The base optimizer; it stays the only one.
        method: `SOAP()`, `KFAC()`, `Muon()`, ..., or a `Mixture` of rules; None takes `SOAP()`, and `KFAC()` before
            SGD. Or one on the whole parameter vector (`FewDirections()`, ...), which takes `product` alone and has
            `optimizer.step(closure)` called.
        route: Overrides, role ("base", "hidden", "embedding", "head") -> globs on names; and "split" -> globs and how
            many matrices a parameter is, as `{"split": {"*.qkv.weight": 3}}`.
        min_coverage: Smallest share of the optimizer's elements that must be covered.
        reduction: Whether the loss is a "mean" or a "sum" over samples, for methods that observe layers. None reads it
            from losses that are shown to `engine.before_backward(loss)`, and takes others for means.
        verify_every: Steps between two comparisons of one block's update with a float64 reference; 0 for never.
        compare_every: Steps between two comparisons of the ranks' weights; 0 for never.
        lag: Steps between a solve and its use: 0, or 1 to have its exchange behind the next forward and backward pass,
            and on CUDA the solve itself. One process waits as long: weights do not depend on the number of ranks.
        sharding: What a matrix is where ranks hold pieces: "exact", the whole, which its owner works on; "local", each
            rank's rows (FSDP2), so that nothing travels and results depend on the number of ranks.
        max_overhead: What all of it may cost, as a share of the training's own step, which is measured: intervals are
            what it buys. `Overhead(0.1, strict=True)` refuses a share that cannot be kept. None for the fixed schedule.
        ways: How bases, polar factors and rotations are computed; what it leaves open is measured, but on a CPU.
        lengths: Of bent updates: "measured", longer while the loss falls straight along them, or as the "base"'s.
        memory: How curvature is to hold less: `Memory(half=True)`, or bytes a byte of the parameters, see `Memory`.
        balance: Whether units go to ranks by their measured speed, where ranks are not equally fast; ranks that are
            keep theirs.
        product: How a method on the whole vector has its products: by "difference" of gradients, "exact", by double
            backward, or "auto", by double backward where there is one.

    Returns:
        The engine: `plan`, `report`, `before_backward`, `state_dict`, `load_state_dict`, `detach`.

    Raises:
        ConfigError: If something is attached already, or optimizer, method and model do not fit together.

    Example:
        >>> import torch
        >>> from lightning_so import SOAP, attach
        >>> model = torch.nn.Linear(4, 3)
        >>> engine = attach(model, torch.optim.AdamW(model.parameters()), SOAP())
        >>> engine.plan.blocks[0].name
        'weight'
    """
    if isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        raise ConfigError(
            f"attach: {type(optimizer).__name__} is a wrapper, as Fabric and Lightning make them, around the "
            f"{type(inner).__name__} in it, which steps: attach to that, `attach(model, optimizer.optimizer, ...)`."
        )
    if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
        raise ConfigError(
            "attach(model, optimizer, method) takes a torch.nn.Module, a torch.optim.Optimizer and a method in this "
            f"order, and got {type(model).__name__}, {type(optimizer).__name__} and {type(method).__name__}."
        )
    whole = isinstance(method, VectorMethod)
    if getattr(optimizer, "_lightning_so_vector" if whole else "_lightning_so", None) is not None:
        raise ConfigError("attach: this optimizer already has a method attached; call `engine.detach()` first.")
    given: dict[str, Any] = {
        "route": route,
        "min_coverage": min_coverage,
        "verify_every": verify_every,
        "compare_every": compare_every,
        "reduction": reduction,
        "lag": lag,
        "max_overhead": max_overhead,
        "ways": ways,
        "lengths": lengths,
        "memory": memory,
        "balance": balance,
    }
    if whole:
        usual = signature(attach).parameters
        if any(value != usual[name].default for name, value in {**given, "sharding": sharding}.items()):
            raise ConfigError(
                f"attach: {type(method).__name__} is one method on all parameters: it takes no options but product."
            )
        check_choice("attach", "product", product, PRODUCTS)
        return AttachedVector(model, optimizer, method, product)
    if product != "difference":
        raise ConfigError(
            f"attach(product={product!r}): {type(method).__name__} takes no products; leave it out. Methods on the "
            f"whole vector do, as AdaHessian()."
        )
    if getattr(optimizer, "_lightning_so_vector", None) is not None:
        raise ConfigError("attach: attach methods on layers and matrices before the one on the whole vector.")
    check_choice("attach", "sharding", sharding, SHARDINGS)
    options = Options.asked("attach", method, **given)
    access = access_of((p for group in optimizer.param_groups for p in group["params"]), model, sharding=sharding)
    host = Host.of(unwrapped(model), optimizer, access=access, world=ambient(sharded=access.sharded))
    return Attached(host, options)

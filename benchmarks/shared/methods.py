"""The optimizers that are compared, each built the same way: `build(method, model, ...)` gives a Contender."""

import argparse
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import _muon

from examples.byte_lm import warmup_cosine

WARMUP = 20
WEIGHT_DECAY = 0.01
COUNTERS = ("step", "skipped", "solves", "failures", "rotated", "bent")


@dataclass(frozen=True)
class Settings:
    """What a run may tune.

    Attributes:
        lr: The peak learning rate.
        betas: Of AdamW.
        adam_lr: That of AdamW's part beside torch's Muon.
        steps: Over which the cosine falls.
        options: Arguments of the method's constructor, or of `attach`, `Ways` or `Memory` where one has that name.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    adam_lr: float = 1e-2
    steps: int = 400
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def of_attach(self) -> dict[str, Any]:
        """The options that are `attach`'s."""
        from lightning_so import Memory, Ways, attach

        known = inspect.signature(attach).parameters
        found = {name: value for name, value in self.options if name in known}
        for name, kind in (("ways", Ways), ("memory", Memory)):
            parts = {part: value for part, value in self.options if part in vars(kind())}
            found |= {name: kind(**parts)} if parts else {}
        return found

    @property
    def of_method(self) -> dict[str, Any]:
        """The options that are the method's."""
        from lightning_so import Memory, Ways

        others = {*self.of_attach, *vars(Ways()), *vars(Memory())}
        return {name: value for name, value in self.options if name not in others}


@dataclass(frozen=True)
class Contender:
    """A model's optimizers, their schedules and, for ours, the engine that is attached."""

    optimizers: Sequence[torch.optim.Optimizer]
    schedules: Sequence[torch.optim.lr_scheduler.LRScheduler]
    engine: Any = None
    before: Callable[[], None] = lambda: None

    def step(self) -> None:
        """One step of every optimizer; the engine works inside it, by its hooks."""
        self.before()
        for optimizer in self.optimizers:
            optimizer.step()

    def observe(self, loss: Tensor) -> None:
        """Show the engine the loss before its backward pass."""
        if self.engine is not None:
            self.engine.before_backward(loss)

    def advance(self) -> None:
        """One step of the learning-rate schedules."""
        for schedule in self.schedules:
            schedule.step()

    def optimizer_bytes(self) -> int:
        """Memory of the optimizers' own state."""
        tensors = [v for o in self.optimizers for s in o.state.values() for v in s.values() if torch.is_tensor(v)]
        return sum(t.numel() * t.element_size() for t in tensors)

    def counters(self) -> dict[str, int]:
        """The engine's counters, empty where there is no engine."""
        return {} if self.engine is None else {name: int(getattr(self.engine.report, name)) for name in COUNTERS}


def adamw(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Plain AdamW on everything."""
    return {"optimizers": [_adamw(model.parameters(), settings.lr, settings)]}


def sgd(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """SGD with momentum on everything."""
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9, weight_decay=0.0)
    return {"optimizers": [optimizer]}


def torch_muon(model: nn.Module, settings: Settings, muon: Callable = torch.optim.Muon) -> dict[str, Any]:
    """torch.optim.Muon on hidden matrices, AdamW on the rest; kernels of convolutions are flattened to matrices."""
    hidden = hidden_weights(model)
    matrices = [nn.Parameter(p.data.view(len(p), -1)) if p.ndim > 2 else p for p in hidden]
    rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
    folded = [(p, matrix) for p, matrix in zip(hidden, matrices, strict=True) if p is not matrix]

    def hand_over() -> None:
        for p, matrix in folded:
            matrix.grad = p.grad.flatten(1)

    optimizer = muon(matrices, lr=settings.lr, weight_decay=WEIGHT_DECAY, momentum=0.95)
    others = [_adamw(rest, settings.adam_lr, settings)] if rest else []
    return {"optimizers": [optimizer, *others], "before": hand_over}


def torch_muon_fp32(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """The same in fp32: torch's own always multiplies in bf16, some thirty times slower on a CPU without such units."""
    return torch_muon(model, settings, MuonFp32)


def torch_muon_adamw(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """The same at AdamW's own rate, as torch offers it: updates have the length of AdamW's, which has the rest."""
    matched = partial(MuonFp32, adjust_lr_fn="match_rms_adamw")
    return torch_muon(model, replace(settings, adam_lr=settings.lr), matched)


class MuonFp32(torch.optim.Muon):
    """torch.optim.Muon with the Newton-Schulz iteration in the gradient's precision."""

    def step(self, closure: Any = None) -> Any:
        """One step; torch's iteration is exchanged for its duration."""
        with mock.patch.object(_muon, "_zeropower_via_newtonschulz", _newton_schulz):
            return super().step(closure)


def soap(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """AdamW with SOAP, its solves staggered."""
    from lightning_so import SOAP

    return _attached(model, settings, SOAP(**settings.of_method))


def soap_sync(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """AdamW with SOAP, all solves on one step."""
    from lightning_so import SOAP, Synchronous

    return _attached(model, settings, SOAP(**{"schedule": Synchronous(), **settings.of_method}))


def muon(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """AdamW bent by its orthogonalised first moment."""
    from lightning_so import Muon

    return _attached(model, settings, Muon(**settings.of_method))


def muon_bf16(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """The same with the Newton-Schulz products in bf16."""
    from lightning_so import Muon

    return _attached(model, settings, Muon(**{"precision": "bf16", **settings.of_method}))


def kfac(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """AdamW bent by K-FAC."""
    from lightning_so import KFAC

    return _attached(model, settings, KFAC(**settings.of_method))


def kfac_sgd(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """SGD with momentum, preconditioned by K-FAC."""
    from lightning_so import KFAC

    return _attached(model, settings, KFAC(**settings.of_method), base=sgd)


def ekfac(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """AdamW in K-FAC's eigenbases."""
    from lightning_so import EKFAC

    return _attached(model, settings, EKFAC(**settings.of_method))


def ekfac_sgd(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """SGD with momentum, divided by fresh second moments in K-FAC's eigenbases."""
    from lightning_so import EKFAC

    return _attached(model, settings, EKFAC(**settings.of_method), base=sgd)


def shampoo(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """AdamW bent by Shampoo."""
    from lightning_so import Shampoo

    return _attached(model, settings, Shampoo(**settings.of_method))


def shampoo_sgd(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """SGD with momentum, preconditioned by Shampoo."""
    from lightning_so import Shampoo

    return _attached(model, settings, Shampoo(**settings.of_method), base=sgd)


CONTENDERS = (adamw, sgd, torch_muon, torch_muon_fp32, torch_muon_adamw, soap, soap_sync, muon, muon_bf16)
CONTENDERS += (kfac, kfac_sgd, ekfac, ekfac_sgd, shampoo, shampoo_sgd)
METHODS: dict[str, Callable[[nn.Module, Settings], dict[str, Any]]] = {f.__name__: f for f in CONTENDERS}


def build(method: str, model: nn.Module, settings: Settings) -> Contender:
    """The contender called `method` on `model`, warm-up and cosine included.

    Raises:
        KeyError: No such method.
        TypeError: Options given to a method of torch, which takes none.
    """
    if method not in METHODS:
        raise KeyError(f"no method {method!r}; there are: {', '.join(METHODS)}")
    if settings.options and (method in ("adamw", "sgd") or method.startswith("torch_muon")):
        raise TypeError(f"{method} takes no --set options, got {dict(settings.options)}")
    parts = METHODS[method](model, settings)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: warmup_cosine(step, total=settings.steps, warmup=WARMUP))
        for o in parts["optimizers"]
    ]
    return Contender(schedules=schedules, **parts)


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """Weights of linear, convolutional, recurrent and attention layers but the last linear one, the head."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    linear = [m for m in layers if isinstance(m, nn.Linear)]
    embeds = any(isinstance(m, nn.Embedding | nn.RNNBase) for m in model.modules())
    classifies = any(isinstance(m, nn.Conv2d) for m in layers)
    head = linear[-1] if linear and (embeds or classifies) else None
    several = [m for m in model.modules() if isinstance(m, nn.RNNBase | nn.MultiheadAttention)]
    inside = [p for m in several for p in m.parameters(recurse=False) if p.ndim == 2]
    return [m.weight for m in layers if m is not head] + inside


def _newton_schulz(grad: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """torch.optim._muon._zeropower_via_newtonschulz without its cast."""
    a, b, c = coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


def _adamw(parameters: Any, lr: float, settings: Settings) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=lr, betas=settings.betas, weight_decay=WEIGHT_DECAY)


def _attached(model: nn.Module, settings: Settings, method: Any, base: Callable = adamw) -> dict[str, Any]:
    from lightning_so import attach

    parts = base(model, settings)
    return {**parts, "engine": attach(model, parts["optimizers"][0], method, **settings.of_attach)}


def option(text: str) -> tuple[str, Any]:
    """`cap=null` to ("cap", None): a constructor argument of the method, its value in JSON or else a string."""
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r}: give name=value, for example start=20")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value

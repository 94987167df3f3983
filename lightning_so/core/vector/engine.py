"""The engine of methods on the whole parameter vector: it watches the base step, and puts what they say in its place.

begin | the base optimizer steps | finish: evaluate at the weights before, ask the method, write the weights
"""

from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.comm import access_of
from lightning_so.contract.vector_method import Step, VectorMethod, adaptive
from lightning_so.core.engine import Engine
from lightning_so.core.stacks.stack import dampen
from lightning_so.core.statistics.recorder import Recorder
from lightning_so.core.step.guard import Guard
from lightning_so.core.vector import files
from lightning_so.core.vector.memory import Memory
from lightning_so.core.vector.moments import Moments
from lightning_so.core.vector.oracle import BatchOracle
from lightning_so.core.vector.rewound import Replays
from lightning_so.errors import ConfigError, TrustError
from lightning_so.linalg.precision import Unrounded, rounded
from lightning_so.probe.parameters import ParameterVector


class VectorEngine:
    """Puts one method behind one base optimizer.

    Attributes:
        method: The method.
        model: The model as it is wrapped.
        vector: The parameters of the optimizer as one vector.
        state: What the method remembers.
        memory: How evaluations are made, and how many there were.
        layerwise: Engines of methods on layers before the same optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        named: Iterable[tuple[str, Tensor]],
        optimizer: Optimizer,
        method: VectorMethod,
        *,
        parallel: bool = False,
        product: str = "difference",
        deepspeed: Any = None,
    ) -> None:
        """See whether the method can work, and create all state.

        Args:
            model: The model as it is wrapped.
            named: Its parameters by name.
            optimizer: The base optimizer; parameters that it does not have are left out.
            method: The method.
            parallel: Whether each replica probes a direction of its own.
            product: How products are taken.
            deepspeed: DeepSpeed's engine, where there is one.

        Raises:
            ConfigError: If the method refuses, or the optimizer calls closures itself.
        """
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigError(
                f"{type(method).__name__}: LBFGS moves the weights several times a step, and what it learns from that "
                f"would be wrong: use SGD or Adam."
            )
        named = list(named)
        groups = access_of((param for _, param in named), model, deepspeed).groups(optimizer)
        self._params = [param for group in groups for param in group["params"]]
        known = {id(param) for param in self._params}
        self.method, self.model, self.optimizer = method, model, optimizer
        self.memory = Memory(type(method).__name__, product, parallel)
        self.vector = ParameterVector.of(
            ((name, param) for name, param in named if id(param) in known), model, deepspeed
        )
        space = self.vector.space
        if not space.dimension:
            raise ConfigError(f"{type(method).__name__}: the optimizer has no parameter that is trained.")
        if parallel and self.vector.access.sharded:
            raise ConfigError(
                f"{type(method).__name__}: parallel=True has ranks evaluate apart, and here they hold pieces of the "
                f"parameters: every evaluation needs all of them. Leave it out."
            )
        if method.owns == "step":
            _refuse_others(type(method).__name__, groups)
        if (reason := method.refuse(space, groups)) is not None:
            raise ConfigError(reason)
        self.state = method.init(space)
        self.layerwise: list[Engine] = []
        # The weights before the step, the gradient, and what the base has added.
        self._rows, self._moments = space.zeros(3), Moments(self.vector, optimizer)
        self._parts = [
            [part.view(weight.shape) for part, weight in zip(space.split(row), self.vector.stepped, strict=True)]
            for row in self._rows
        ]  # As the parameters are shaped.
        self._seen, self._guard = False, Guard(self.vector.comm, self.vector.access)

    def stand_behind(self, engines: list[Engine]) -> None:
        """Be behind engines of methods on layers.

        Args:
            engines: Those before the same optimizer.

        Raises:
            ConfigError: If nothing of their step would be left.
        """
        name, theirs = type(self.method).__name__, ", ".join(type(m).__name__ for e in engines for m in e.parts.methods)
        if engines and self.method.owns == "step":
            raise ConfigError(
                f"{name} makes the step itself, and what {theirs} does to the gradient would be lost: leave one of "
                f"them out, or use QuadraticModel(), which goes behind K-FAC."
            )
        if engines and self.method.owns == "moments":
            raise ConfigError(
                f"{name} makes an Adam's step anew from its first moment, and what {theirs} makes of it would be lost: "
                f"leave one of them out, or use FewDirections(), which goes behind both."
            )
        self.layerwise = engines

    @property
    def plan(self) -> str:
        """What it will do, in words."""
        vectors = sum(tensor.numel() // max(tensor.shape[-1], 1) for tensor in self.state.vectors.values())
        space = self.vector.space
        size = vectors * space.dimension * self._rows.element_size() / 1e6
        return (
            f"{self.method} on {space.dimension:,} numbers of {len(space.pieces)} parameters; "
            f"remembers {vectors} vectors ({size:.1f} MB over all ranks)."
        )

    @property
    def recorders(self) -> list[Recorder]:
        """The recorders of methods on layers, which must not observe what this engine evaluates."""
        return [recorder for engine in self.layerwise for recorder in engine.recorders]

    @property
    def fits(self) -> bool:
        """Whether the optimizer has the parameters that it had when this was made."""
        now = [param for group in self.vector.access.groups(self.optimizer) for param in group["params"]]
        return len(now) == len(self._params) and all(map(is_, now, self._params))

    def check_fits(self) -> None:
        """Stop a training whose parameters have become others.

        Raises:
            TrustError: If the optimizer has others.
        """
        if not self.fits:
            raise TrustError(
                f"{type(self.method).__name__} works on the {len(self._params)} parameters that "
                f"{type(self.optimizer).__name__} had when it began, and some were added or replaced since: it would "
                f"leave them alone. Call engine.detach(), and attach it again."
            )

    def probes(self) -> bool:
        """Whether the coming step evaluates anything besides."""
        return self.method.probes(self.memory.counts.steps + 1)

    @torch.no_grad()
    def saw(self) -> None:
        """Remember the gradient: after the backward pass, before it is clipped or changed."""
        self.vector.grads(out=self._rows[1])
        self._moments.saw()
        self._seen = True

    @torch.no_grad()
    def admit(self) -> None:
        """Withhold all gradients where one is not finite, on any rank: after the backward pass, before the base steps.

        The base then moves nothing, and the step is counted as skipped. Methods on layers before this one have a guard
        of their own.
        """
        if not self.layerwise and not self._guard.admit(self.vector.params).admitted:
            self.memory.counts.skipped += 1
            self._seen = False

    def restore(self) -> None:
        """Give back what `admit` has withheld: after the base's step, whatever happened in it."""
        self._guard.give_back()

    @torch.no_grad()
    def begin(self) -> None:
        """Remember the weights: before the base steps, and the methods on layers."""
        if "damping" in self.state.numbers:
            for engine in self.layerwise:
                dampen(engine.stacks, float(self.state.numbers["damping"]))
        torch._foreach_copy_(self._parts[0], self.vector.stepped)

    @torch.no_grad()
    def finish(self, replays: Replays, *, same: bool, half: bool) -> None:
        """Put what the method says in the place of the base's step, which has been made.

        Args:
            replays: See there.
            same: Whether they give the gradient that was seen.
            half: Whether they are computed in half precision.
        """
        if not self._seen:
            return
        self._seen = False
        # Evaluations are not rounded: a gradient that is would be compared with them.
        same = same and not rounded()
        with Unrounded():
            self._replace(replays, same, half)

    def _replace(self, replays: Replays, same: bool, half: bool) -> None:
        start, gradient, _ = self._rows
        space = self.vector.space
        stepped = self.vector.stepped
        for weight, at, part in zip(stepped, self._parts[0], self._parts[2], strict=True):
            torch.sub(weight, at, out=part)
        lengths = space.along(self._rows[1:], self._rows[1:]).diagonal().sqrt().tolist()
        if not all(0 < length < float("inf") for length in lengths):
            self.memory.counts.skipped += 1
            return
        self.memory.counts.steps += 1
        here = gradient if same else None
        oracle = BatchOracle(self.memory, self.vector, self.model, replays, start, here, half)
        try:
            rate, number = lengths[1] / lengths[0], self.memory.counts.steps
            step = Step(number, space, start, self._rows[1:], rate, self._schedule(), oracle, self._moments)
            taken = self.method.update(self.state, step)
        finally:
            oracle.close()
        if taken is None:
            if oracle.evaluated:
                self.vector.forward.take()
            return
        for part, moves in zip(space.split(taken), self._moments.stepped, strict=True):
            if not moves:  # Directions may be random: without a gradient a parameter stays.
                part.zero_()
        if not float(space.along(taken[None], taken[None])) < float("inf"):
            self.memory.counts.refused += 1
            if self.method.owns == "nothing":
                self.vector.forward.take()
                return
            taken = taken.zero_()  # The base's own step, at a rate that is not for it, is none to fall back on.
        for weight, at, part in zip(stepped, self._parts[0], space.split(taken), strict=True):
            torch.add(at, part.view(at.shape), out=weight)
        self.vector.forward.take()

    def state_dict(self) -> dict[str, Any]:
        """See `core.vector.files.state_dict`; save it beside the optimizer's own."""
        return files.state_dict(self.method, self.state, self.vector.space, self.memory)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """See `core.vector.files.load_state_dict`."""
        files.load_state_dict(self.method, self.state, self.vector.space, self.memory, saved)

    def _schedule(self) -> float:
        """See `Step.schedule`."""
        group = self.vector.access.group(self.optimizer, 0)
        return float(group["lr"]) / float(group.get("initial_lr", group["lr"]))

    def scalars(self) -> dict[str, float]:
        """What is logged."""
        return {
            **self.method.scalars(self.state),
            "curv/evaluations": float(self.memory.counts.evaluations + self.memory.counts.forwards / 3),
            "curv/skipped_steps": float(self.memory.counts.skipped + self.memory.counts.refused),
            "curv/unusable": float(self.memory.counts.unusable),
        }


def _refuse_others(name: str, groups: Sequence[dict[str, Any]]) -> None:
    """Refuse a base whose momentum or decay would be lost without a word."""
    for group in groups:
        if group.get("momentum") or adaptive(group):
            raise ConfigError(
                f"{name} finds step size and momentum itself, and those of this optimizer would be lost: use "
                f"torch.optim.SGD with momentum=0 (its learning rate does not matter, a schedule of it does)."
            )
        if group.get("weight_decay"):
            raise ConfigError(
                f"{name} minimises the loss, and weight_decay={group['weight_decay']} is not in it: set it to 0, and "
                f"add the squares of the weights to the loss."
            )

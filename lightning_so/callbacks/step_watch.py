"""One training step of every so many, looked at from outside: the health of its layers, and where it goes."""

import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_so.callbacks import strategies
from lightning_so.callbacks.batches import tensors
from lightning_so.monitor.health import Health
from lightning_so.monitor.illness import Ill, ill
from lightning_so.monitor.layers import layers
from lightning_so.monitor.noise import NoiseScale
from lightning_so.monitor.steps import LayerStep, layer_steps
from lightning_so.probe.parameters import ParameterVector

#: Layers that are ill and logged by name.
NAMED = 3


class StepWatch:
    """Looks at a step: hooks while its passes run, the weights before and after it, its gradient. It changes nothing.

    Under DeepSpeed, whose gradients are its engine's, steps are not measured; their layers' health is.

    Attributes:
        health: The health of layers.
        ill: The layers that were ill at the last look.
        steps: What the last step that was measured did to each layer, and under "" to all.
        noise: The gradient noise scale, of one optimizer that steps by itself.
        samples: Those of a batch on all ranks; None where that cannot be told.
    """

    def __init__(self, module: nn.Module, every: int) -> None:
        """Look at nothing yet.

        Args:
            module: The model.
            every: Steps between two looks.
        """
        self.health, self.every = Health(module), every
        self.ill, self.steps, self.noise = list[Ill](), dict[str, LayerStep](), NoiseScale()
        self.samples: int | None = None
        self._open: ExitStack | None = None
        self._step, self._stride = 0, 1
        self._vector: ParameterVector | None = None
        self._weights: Tensor | None = None
        self._gradient: Tensor | None = None
        self._stepped = list[bool]()
        self._earlier: tuple[int, Tensor] | None = None

    def due(self, step: int) -> bool:
        """Whether the coming step is looked at, by the steps so far; several optimizers may take several at once."""
        return (step + self._stride) // self.every > step // self.every

    def begin(self, trainer: Any, vector: ParameterVector) -> None:
        """Open the hooks and keep the weights, before the first micro-batch of a step that is looked at.

        Args:
            trainer: The Trainer.
            vector: The parameters.
        """
        if self._open is not None:
            return
        self._step, self._open = trainer.global_step, ExitStack()
        self._open.enter_context(self.health.look())
        self._vector, self._gradient = vector, None
        self._weights = None if strategies.is_deepspeed(trainer.strategy) else vector.values()

    def before_step(self, trainer: Any, vector: ParameterVector, optimizer: Any) -> None:
        """Keep the gradient that an optimizer is about to step on, as it is without a loss scale.

        Args:
            trainer: The Trainer.
            vector: The parameters.
            optimizer: The optimizer.
        """
        if strategies.is_deepspeed(trainer.strategy):
            return
        alone = len(trainer.optimizers) == 1 and trainer.lightning_module.automatic_optimization
        # A fused step removes the scale itself, which may be another at the next step.
        scaled = strategies.unscales_itself(trainer, optimizer)
        step, here = trainer.global_step + 1, None
        if alone and not scaled and (step % self.every == 0 or (step + 1) % self.every == 0):
            here = vector.grads()
            self._compare(step, vector, here)
        if self._open is None or vector is not self._vector:
            return
        if alone:
            self._gradient = vector.grads() if here is None else here
            self._stepped = [True for _ in vector.params]
            return
        mine = {id(param) for group in strategies.client(optimizer).param_groups for param in group["params"]}
        if self._gradient is None:
            self._gradient, self._stepped = vector.space.zeros(), [False for _ in vector.params]
        held = zip(vector.params, vector.space.split(self._gradient), vector.space.split(vector.grads()), strict=True)
        for number, (param, kept, grad) in enumerate(held):
            if id(param) in mine and not self._stepped[number]:
                kept.copy_(grad)
                self._stepped[number] = True

    def _compare(self, step: int, vector: ParameterVector, here: Tensor) -> None:
        """Compare the gradients of two steps that follow each other, the second of which is looked at."""
        earlier, self._earlier = self._earlier, None
        known = earlier is not None and earlier[0] == step - 1 and earlier[1].shape == here.shape
        if step % self.every == 0 and earlier is not None and known:
            both = torch.stack([earlier[1], here])
            found = vector.space.along(both, both).tolist()
            if all(map(math.isfinite, (*found[0], *found[1]))):
                self.noise.add(found[0][0], found[1][1], found[0][1])
        if (step + 1) % self.every == 0:
            self._earlier = (step, here)

    def end(self, trainer: Any, vector: ParameterVector, batch: Any) -> dict[str, float]:
        """Close what was opened, once an optimizer has stepped.

        Args:
            trainer: The Trainer, at the end of a batch.
            vector: The parameters.
            batch: The batch.

        Returns:
            What is logged; nothing where no look has ended.
        """
        if self._open is None or trainer.global_step == self._step:
            return {}
        self._stride = trainer.global_step - self._step
        self.close()
        each = _samples(batch)
        self.samples = None if each is None else each * trainer.accumulate_grad_batches * trainer.world_size
        weights, gradient = self._weights, self._gradient
        if weights is not None and gradient is not None and vector is self._vector:
            found = layers((piece.name for piece in vector.space.pieces), ("*",), "CurvatureMonitor")
            moved = {name: at for name, at in found.items() if all(self._stepped[number] for number in at)}
            self.steps = layer_steps(vector.space, weights, vector.values(), gradient, moved)
        self._weights = self._gradient = self._vector = None
        return {**self._of_steps(), **self._of_health()}

    def close(self) -> None:
        """Take the hooks back."""
        if self._open is not None:
            self._open.close()
            self._open = None

    @property
    def noise_scale(self) -> float | None:
        """The gradient noise scale in samples; None where it is not known."""
        batches = self.noise.batches
        return None if batches is None or self.samples is None else batches * self.samples

    def _of_steps(self) -> dict[str, float]:
        """What is logged of steps: of all layers together, and the extremes over layers."""
        found: dict[str, float | None] = {"curv/noise_scale": self.noise_scale}
        if self.steps:
            each = [step for name, step in self.steps.items() if name]
            found["curv/cosine"] = self.steps[""].cosine
            found["curv/cosine_min"] = min((step.cosine for step in each if step.cosine == step.cosine), default=None)
            found["curv/trust_ratio_max"] = max((step.trust for step in each if step.trust == step.trust), default=None)
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    def _of_health(self) -> dict[str, float]:
        """What is logged of health: the extremes, how many layers are ill, and the first of these by name."""
        health = self.health
        numbers = health.numbers()[:, health.order].tolist()
        names, widths = [health.names[n] for n in health.order], [health.widths[n] for n in health.order]
        self.ill = ill(names, widths, numbers)
        dead, saturated, ranks, largest = ([n for n in row if n == n] for row in numbers)
        extremes = {
            "health/dead_max": max(dead, default=None),
            "health/saturated_max": max(saturated, default=None),
            "health/rank_min": min(ranks, default=None),
            "health/largest_max": max(largest, default=None),
            "health/ill": float(len(self.ill)),
        }
        told = {name: value for name, value in extremes.items() if value is not None}
        return told | {f"health/{one.kind}/{one.layer}": one.value for one in self.ill[:NAMED]}


def _samples(batch: Any) -> int | None:
    """How many samples a batch has: the first size that all its tensors share; None where they share none."""
    sizes = {tensor.shape[0] if tensor.ndim else None for tensor in tensors(batch)}
    return sizes.pop() if len(sizes) == 1 else None

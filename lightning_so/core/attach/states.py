"""What an optimizer gives out and takes in while blocks rotate: plain moments, whoever asks, and nothing of ours.

A state that is loaded is plain too. If it is the one that would be given out now, nothing changes; else blocks that
rotate are away until the next step, at which their moments enter the bases again.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.core.checkpoint import plain_moments, resting
from lightning_so.core.engine import Engine
from lightning_so.core.solves import basis
from lightning_so.errors import StateError


class States:
    """Hooks on `state_dict`, `load_state_dict` and copies of an engine's optimizer."""

    def __init__(self, engine: Engine) -> None:
        """Hook the optimizer.

        Args:
            engine: The engine in front of it.
        """
        self._engine, self._optimizer = engine, engine.optimizer
        self._before, self._plain = dict[Tensor, dict[str, Tensor]](), dict[Tensor, dict[str, Tensor] | None]()
        self._handles = [
            self._optimizer.register_state_dict_post_hook(self._given),
            self._optimizer.register_load_state_dict_pre_hook(self._remember),
            self._optimizer.register_load_state_dict_post_hook(self._loaded),
        ]
        # `copy` and `pickle` look it up on the object.
        self._copied = self._optimizer.__getstate__
        self._optimizer.__dict__["__getstate__"] = self._getstate

    def remove(self) -> None:
        """Take the hooks back."""
        for handle in self._handles:
            handle.remove()
        self._optimizer.__dict__.pop("__getstate__", None)

    def end(self) -> None:
        """Leave an optimizer behind that goes on alone, and take the hooks back.

        What owners alone have the bases of cannot be made plain after an exception on some ranks: then the optimizer
        goes on refusing to give its state.
        """
        if not self._refuses:
            resting.rest(self._engine.parts)
            self.remove()

    # ---------------------------------------------------------------- inside

    @property
    def _refuses(self) -> bool:
        parts = self._engine.parts
        return parts.matrices.owned and bool(basis.places(parts.roster))

    def _given(self, _: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        parts = self._engine.parts
        if self._engine.aside or not basis.places(parts.roster):
            return None
        if self._refuses:
            raise StateError(
                f"the moments of {type(self._optimizer).__name__} are in rotated coordinates, and a rank has pieces of "
                f"them, or not all bases: to make them plain all ranks have to take part, and its state_dict() may be "
                f"called on one. "
                f"Save a checkpoint of the Trainer; in a plain loop call it, or get_optimizer_state_dict(), on every "
                f"rank inside `with engine.plain():`."
            )
        if parts.host.access.local:
            return plain_moments.collected([parts], lambda: state_dict)
        return plain_moments.plain_state(parts, state_dict)

    def _getstate(self) -> dict[str, Any]:
        copied = self._copied()
        state = copied.get("state")
        if state is None or not basis.places(self._engine.parts.roster):
            return copied
        params = self._engine.host.params
        numbered = {number: state[param] for number, param in enumerate(params) if param in state}
        given = self._given(self._optimizer, {"state": numbered, "param_groups": [{"params": [*range(len(params))]}]})
        if given is None:
            return copied
        return {**copied, "state": defaultdict(dict, {**state, **{params[n]: of for n, of in given["state"].items()}})}

    @torch.no_grad()
    def _remember(self, *_: Any) -> None:
        """Remember the moments as they are, and as they would be given out, while the optimizer still has them."""
        engine, parts = self._engine, self._engine.parts
        if engine.hidden:
            raise StateError(
                f"a state is loaded into {type(self._optimizer).__name__} in the middle of a step, while weights are "
                f"hidden and gradients rotated: load it before or after optimizer.step()."
            )
        self._before = {param: self._moments(param) for param in parts.host.params}
        # One rank cannot make plain what it has no bases of.
        alone = parts.matrices.owned or not basis.places(parts.roster)
        self._plain = {} if alone else plain_moments.plain_moments(parts)

    @torch.no_grad()
    def _loaded(self, _: Optimizer) -> None:
        """Have exact moments back, where what was loaded is what would have been given out."""
        parts, before, plain = self._engine.parts, self._before, self._plain
        self._before, self._plain = {}, {}
        if not self._engine.report.step:
            return  # Nothing is known of curvature yet.
        places = basis.places(parts.roster)
        if (plain or not places) and self._same({**before, **plain}):
            for param in plain:
                live = self._moments(param)
                for key, value in before[param].items():
                    live[key].copy_(value)
            return
        basis.leave(parts.roster, places)
        parts.roster.foreign = True

    def _moments(self, param: Tensor) -> dict[str, Tensor]:
        """This rank's pieces of the moments of a parameter."""
        host = self._engine.host
        return host.moments(host.access.state(self._optimizer, param))

    def _same(self, given: dict[Tensor, dict[str, Tensor] | None]) -> bool:
        """Whether the optimizer has these moments, bit for bit."""
        for param, moments in given.items():
            live = self._moments(param)
            if moments is None or live.keys() != moments.keys():
                return False
            if not all(torch.equal(live[key], moments[key]) for key in live):
                return False
        return True

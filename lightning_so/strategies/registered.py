"""Names for `Trainer(strategy=...)` under every import name of Lightning, there as soon as Lightning's own are.

Lightning is not imported for it: that takes seconds, and a command that prints its help needs none of it.
"""

import sys
from collections.abc import Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from lightning_so.strategies.names import LIGHTNINGS, make


def register(lightning: str, registry: Any) -> None:
    """Give our strategies' names to a registry.

    Args:
        lightning: The import name of Lightning that it belongs to.
        registry: Its `StrategyRegistry`.
    """
    for stage in (1, 2, 3):
        registry.register(
            f"deepspeed_so_stage_{stage}",
            partial(make, "deepspeed", lightning),
            description=f"DeepSpeed with ZeRO stage {stage} and the right scale of the loss under accumulation",
            override=True,
            stage=stage,
        )
    registry.register(
        "ddp_so", partial(make, "ddp", lightning), description="DDP, with statistics beside gradients", override=True
    )
    registry.register("fsdp_so", partial(make, "fsdp", lightning), description="FSDP1, on CPU too", override=True)


class Awaited(MetaPathFinder):
    """Registers behind the import of one Lightning's strategies, whoever imports them."""

    def __init__(self, lightning: str) -> None:
        """Wait for one.

        Args:
            lightning: Its import name.
        """
        self._lightning = lightning

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Python's own spec of Lightning's strategies, whose loading registers ours; None for any other module."""
        spec = PathFinder.find_spec(fullname, path) if fullname == f"{self._lightning}.strategies" else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def loaded(module: ModuleType) -> None:
                load(module)
                register(self._lightning, module.StrategyRegistry)
                sys.meta_path.remove(self)

            spec.loader.exec_module = loaded  # The loader stays Python's own: others ask it for files.
        return spec


for _lightning in LIGHTNINGS:
    if _there := sys.modules.get(f"{_lightning}.strategies"):
        register(_lightning, _there.StrategyRegistry)
    else:
        sys.meta_path.insert(0, Awaited(_lightning))

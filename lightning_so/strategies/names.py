"""The import names of Lightning, and a strategy for each; what a name stands for is imported when it is used."""

import importlib
import importlib.util
from typing import Any

#: Import names of Lightning that are installed. Each Trainer takes strategies of its own name only.
LIGHTNINGS = tuple(
    name for name in ("pytorch_lightning", "lightning.pytorch") if importlib.util.find_spec(name.split(".")[0])
)


def twins(ours: type) -> dict[str, Any]:
    """A strategy for each import name of Lightning that is installed.

    Args:
        ours: That of `pytorch_lightning`, with our corrections as its first base and Lightning's strategy as its last.

    Returns:
        By import name; for another, the corrections before its own strategy of the same name.
    """
    corrections, stock = ours.__bases__
    found: dict[str, Any] = {"pytorch_lightning": ours}
    for lightning in LIGHTNINGS:
        if lightning not in found:
            theirs = getattr(importlib.import_module(f"{lightning}.strategies"), stock.__name__)
            members = {"__doc__": ours.__doc__, "__module__": ours.__module__}
            found[lightning] = type(f"Lightning{ours.__name__}", (corrections, theirs), members)
    return found


def make(module: str, lightning: str, **arguments: Any) -> Any:
    """The strategy of one of this package's modules for one import name of Lightning.

    Args:
        module: The module's name, imported now and not before.
        lightning: The import name.
        arguments: What the strategy is made with.

    Returns:
        The strategy.
    """
    return importlib.import_module(f"lightning_so.strategies.{module}").CLASSES[lightning](**arguments)

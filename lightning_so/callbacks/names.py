"""Both import names: a Callback that `pytorch_lightning` and `lightning.pytorch` accept, whichever are installed."""

import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:
    # Neither name's Callback subclasses the other's, and LightningCLI checks for its own: derive from all there are.
    Callback = type(
        "Callback",
        tuple(
            importlib.import_module(f"{name}.callbacks").Callback
            for name in ("pytorch_lightning", "lightning.pytorch")
            if importlib.util.find_spec(name.split(".")[0]) is not None
        ),
        {},
    )

__all__ = ["Callback"]

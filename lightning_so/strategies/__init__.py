"""Lightning strategies that need more than a callback; importing the package registers their names, and no more."""

from lightning_so.strategies import registered as registered

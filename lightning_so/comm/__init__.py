"""The only room that talks to other processes: every exchange is here, and is made by all ranks in the same order."""

from lightning_so.comm.local import Local
from lightning_so.comm.replicated import Replicated, ambient

__all__ = ["Local", "Replicated", "ambient"]

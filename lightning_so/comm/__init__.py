"""The only room that talks to other processes: every exchange is here, and is made by all ranks in the same order."""

from lightning_so.comm.access.whole import SHARDINGS, Access
from lightning_so.comm.choose import access_of, ambient, forward_of, standing
from lightning_so.comm.filled import filled
from lightning_so.comm.forward.plain import Forward, Sent
from lightning_so.comm.local import Local, replicated_tensors
from lightning_so.comm.meeting import available, meeting
from lightning_so.comm.pieces import Pieces, within
from lightning_so.comm.replicated import Replicated, group_of
from lightning_so.comm.sharded import Sharded
from lightning_so.comm.wrappers import unsynced, unwrapped

__all__ = [
    "SHARDINGS",
    "Access",
    "Forward",
    "Local",
    "Pieces",
    "Replicated",
    "Sent",
    "Sharded",
    "access_of",
    "ambient",
    "available",
    "filled",
    "forward_of",
    "group_of",
    "meeting",
    "replicated_tensors",
    "standing",
    "unsynced",
    "unwrapped",
    "within",
]

"""The training that an engine works in."""

from typing import TYPE_CHECKING

from lightning_so.contract.block import Block

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def anywhere(engine: "Engine", flag: bool) -> bool:
    """Whether something holds on any rank: a collective where ranks work apart, else the same on all."""
    return engine.peers.anywhere([flag])[0] if engine.access.local else flag


def least_variance(engine: "Engine", block: Block) -> float:
    """See `moments.Base.least_variance`."""
    return engine.base.least_variance(engine.group(block.group))

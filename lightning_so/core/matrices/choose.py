"""Which matrices fit a training."""

from collections.abc import Iterable

from lightning_so.comm import Sharded
from lightning_so.contract.block import Block
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import Matrices
from lightning_so.core.matrices.owned import OwnedMatrices
from lightning_so.core.matrices.sharded import ShardedMatrices
from lightning_so.errors import ConfigError


def matrices_of(host: Host, blocks: Iterable[Block], *, whole_weights: bool, lean: bool = False) -> Matrices:
    """Where the matrices of a training are whole; a collective where its parameters are sharded.

    Args:
        host: The training.
        blocks: What a method works on, with their owners.
        whole_weights: Whether checks are asked for that need whole weights.
        lean: See `Matrices`.

    Returns:
        The matrices.

    Raises:
        ConfigError: If they are, and ranks hold pieces.
    """
    if not host.access.sharded and not host.access.local:
        alone = any(block.owner is not None for block in blocks)
        return OwnedMatrices(host, lean=lean) if alone else Matrices(host, lean=lean)
    if whole_weights:
        raise ConfigError(
            "verify_every and compare_every look at whole weights, and ranks hold pieces of these parameters: leave "
            "both at 0 under FSDP and DeepSpeed; check a short training under DDP instead."
        )
    if host.access.local:
        return Matrices(host, lean=lean)
    assert isinstance(host.team, Sharded)
    matrices = ShardedMatrices(host, host.team, lean=lean)
    matrices.learn(host.params)
    return matrices

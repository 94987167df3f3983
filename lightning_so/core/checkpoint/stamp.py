"""The stamp in param groups and files: it tells that they were written with this package."""

from torch.optim import Optimizer

from lightning_so.errors import StateError

STAMP, MARK = "lightning_so", "plain-1"


def check_stamp(optimizer: Optimizer, stamped: bool = False) -> None:
    """Refuse an optimizer that was loaded from one of our files while our own state was not.

    Args:
        optimizer: The optimizer.
        stamped: Whether the file itself carries the stamp.

    Raises:
        StateError: If it does, or a group.
    """
    if stamped or any(STAMP in group for group in optimizer.param_groups):
        raise StateError(
            f"the checkpoint was written with lightning_so (it and its param_groups carry {STAMP!r}), but the state of "
            f"SecondOrder is missing: keep checkpoint['callbacks'], or delete {STAMP!r} from the checkpoint and from "
            f"its optimizer_states' param_groups to start cold from its moments, which are in plain coordinates."
        )

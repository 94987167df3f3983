"""Sums of outer products by strips: a CPU computes the upper triangle of a wide one alone.

Legend: Q groups, P rows, T side of a tile.
"""

from torch import Tensor

#: The least side of a tile that is cut, and into how many strips: 5/8 of the products, in as many calls.
WIDE, STRIPS = 256, 4


def cut(window: Tensor) -> int:
    """How wide the strips of sums (..., T, T) are; 0 where they are computed whole, as on a device that launches."""
    T = window.shape[-1]
    return -(-T // STRIPS) if T >= WIDE and window.device.type == "cpu" else 0


def add_products(window_QTT: Tensor, rows_QPT: Tensor, scale: float) -> None:
    """Add `scale R'R` of rows to sums in place; what is below the strips is left to `mirror`.

    Args:
        window_QTT: The sums.
        rows_QPT: The rows.
        scale: What they are multiplied by.
    """
    T = window_QTT.shape[-1]
    width = cut(window_QTT) or T
    for at in range(0, T, width):
        strip = rows_QPT[..., at : at + width].mT
        window_QTT[:, at : at + width, at:].baddbmm_(strip, rows_QPT[..., at:], alpha=scale)


def mirror(windows: Tensor) -> None:
    """Fill in what `add_products` has left out of sums (..., T, T), in place."""
    T, width = windows.shape[-1], cut(windows)
    for at in range(0, T, width) if width else ():
        end = at + width
        windows[..., end:, at:end] = windows[..., at:end, end:].mT

"""A function on several ranks, each a process of its own that begins anew."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

T = TypeVar("T")


def on_ranks(ranks: int, measure: Callable[..., T], *arguments: Any) -> list[T]:
    """What a function of a module gives on each rank.

    Args:
        ranks: How many there are.
        measure: Called with the rank, their number, the path of a file at which they meet, and the arguments.
        arguments: The same on all ranks.

    Returns:
        By rank.
    """
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(measure, rank, ranks, f"{folder}/meeting", *arguments) for rank in range(ranks)]
            return [future.result() for future in futures]

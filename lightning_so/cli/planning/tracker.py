"""What lives at once: bytes of tensors that are made inside, at their most."""

import weakref
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Tracker(TorchDispatchMode):
    """Counts bytes of tensors that are made inside.

    Attributes:
        live: Of those that are there now.
        most: At their most.
    """

    def __init__(self) -> None:
        """Nothing was made."""
        super().__init__()
        self.live, self.most = 0, 0
        self._known = dict[int, Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, and count what it gives."""
        found = func(*args, **(kwargs or {}))
        if _makes(func):
            for each in found if isinstance(found, list | tuple) else (found,):
                if isinstance(each, torch.Tensor):
                    self._count(each.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), id(storage)
        if key in self._known:
            return
        self.live += size
        self.most = max(self.most, self.live)
        self._known[key] = weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.live -= size


@cache
def _makes(func: Any) -> bool:
    """Whether an operator gives tensors of its own, neither views nor its arguments."""
    return all(each.alias_info is None for each in func._schema.returns)

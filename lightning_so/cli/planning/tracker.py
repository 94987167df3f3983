"""What lives at once: bytes of tensors that are made inside, at their most."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                storage = leaf.untyped_storage()
                if id(storage) not in before and id(storage) not in self._known:
                    self._count(storage)
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), id(storage)
        self.live += size
        self.most = max(self.most, self.live)
        self._known[key] = weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.live -= size

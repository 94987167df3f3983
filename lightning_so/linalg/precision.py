"""Products in the precision of their factors, whatever a training has asked of its own.

A GPU with tensor cores rounds float32 factors to 11 bits where torch is told to (TF32: Lightning advises
`torch.set_float32_matmul_precision("medium")`), some CPUs to 8 (bfloat16); an autocast does it to all. A model bears
that. The small half of a spectrum lies below that rounding: bases, roots and inverses of such products are noise there.
"""

import warnings
from collections.abc import Callable
from contextlib import ContextDecorator
from functools import cache, partial
from typing import Any, ClassVar

import torch

#: Changes a setting of torch, and gives what puts it back; None where there is nothing to change.
Change = Callable[[], Callable[[], None] | None]
#: What torch calls products of fewer bits, and who makes them: cuBLAS, oneDNN.
ROUNDED, BACKENDS = ("tf32", "bf16"), ("cuda", "mkldnn")
#: The settings since torch 2.9, by backend and operation; before there was one, of all backends.
_get: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
_set: Any = getattr(torch._C, "_set_fp32_precision_setter", None)


def rounded() -> bool:
    """Whether torch is told to round the factors of float32 products, somewhere."""
    if _get is None:
        return torch.get_float32_matmul_precision() != "highest"
    return _get("cuda", "matmul") in ROUNDED or _get("mkldnn", "matmul") in ROUNDED


def _unround() -> Callable[[], None] | None:
    """Have float32 products made in float32."""
    if not rounded():
        return None
    if _get is None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return partial(torch.set_float32_matmul_precision, before)
    own = {backend: _own(backend) for backend in BACKENDS}
    _tell(dict.fromkeys(BACKENDS, "ieee"))
    # The older setting is one of its own, which kernels no longer read and others do. It can be read now: where both
    # were used and say different things, reading it raises.
    _read_quietly()
    older = torch.get_float32_matmul_precision()
    if older != "highest":
        torch.set_float32_matmul_precision("highest")

    def put_back() -> None:
        if older != "highest":
            torch.set_float32_matmul_precision(older)
        _tell(own)

    return put_back


def _round() -> Callable[[], None] | None:
    """Have float32 products of an accelerator made of rounded factors."""
    if _get is None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        return partial(torch.set_float32_matmul_precision, before)
    own = _own("cuda")
    _tell({"cuda": ROUNDED[0]})
    return partial(_tell, {"cuda": own})


def _own(backend: str) -> str:
    """What a backend was told of its products; "none" where it does as all its operations, or all backends, do."""
    # What is taken over can be told from what is its own only by taking it away for a moment.
    everywhere = _get("generic", "all")
    _set("generic", "all", "none")
    here = _get(backend, "all")
    _set(backend, "all", "none")
    own = _get(backend, "matmul")
    _set(backend, "all", here)
    _set("generic", "all", everywhere)
    return own


def _tell(settings: dict[str, str]) -> None:
    for backend, setting in settings.items():
        _set(backend, "matmul", setting)


@cache
def _read_quietly() -> None:
    """Read the older setting without the warning that torch 2.9 has for whoever reads it first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.get_float32_matmul_precision()


def _uncast() -> Callable[[], None] | None:
    """Turn autocasts off."""
    on = [kind for kind in ("cuda", "cpu") if torch.is_autocast_enabled(kind)]
    if not on:
        return None
    for kind in on:
        torch.set_autocast_enabled(kind, False)

    def put_back() -> None:
        for kind in on:
            torch.set_autocast_enabled(kind, True)

    return put_back


class _Changed(ContextDecorator):
    """Settings are others inside, and afterwards what they were; a context, or a decorator of a function."""

    changes: ClassVar[tuple[Change, ...]] = ()

    def __enter__(self) -> None:
        """Change them."""
        self._put_back = [undo for change in self.changes if (undo := change()) is not None]

    def __exit__(self, *_: object) -> None:
        """Put them back."""
        for undo in self._put_back:
            undo()

    def _recreate_cm(self) -> "_Changed":
        return type(self)()


class Unrounded(_Changed):
    """Float32 products are made in float32 inside, whichever of torch's settings says otherwise outside.

    Example:
        >>> torch.set_float32_matmul_precision("medium")
        >>> with Unrounded():
        ...     torch.get_float32_matmul_precision()
        'highest'
        >>> torch.get_float32_matmul_precision()
        'medium'
        >>> torch.set_float32_matmul_precision("highest")
    """

    changes = (_unround,)


class Rounded(_Changed):
    """Float32 products of an accelerator may be made of factors rounded to 11 bits inside (TF32), whatever is set."""

    changes = (_round,)


class Uncast(_Changed):
    """No autocast inside: products are made in the dtype of their factors, float32 ones as torch is told to."""

    changes = (_uncast,)


class FullPrecision(_Changed):
    """Both: what observes, solves and preconditions is computed inside. What only rotates is `Uncast` alone."""

    changes = (_unround, _uncast)

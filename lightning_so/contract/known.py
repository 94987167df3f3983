"""Methods by name, as rules call them."""

from typing import TypeVar

#: Methods by lower-case name, as rules call them: see `known`.
KNOWN: dict[str, type] = {}


M = TypeVar("M", bound=type)


def known(cls: M) -> M:
    """Make a method known to rules by its name; a decorator."""
    KNOWN[cls.__name__.lower()] = cls
    return cls

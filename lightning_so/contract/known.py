"""Methods by name, as rules call them."""

from typing import Any, TypeVar

from lightning_so.errors import ConfigError

#: Methods by lower-case name, as rules call them: see `known`.
KNOWN: dict[str, type] = {}


M = TypeVar("M", bound=type)


def known(cls: M) -> M:
    """Make a method known to rules by its name; a decorator."""
    KNOWN[cls.__name__.lower()] = cls
    return cls


def called(name: str, asked: str, more: str = "") -> Any:
    """A method by its name, with its defaults.

    Args:
        name: The name, in any case.
        asked: How it was asked for, for the error.
        more: What the error says besides.

    Returns:
        The method.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name.lower() not in KNOWN:
        raise ConfigError(f"{asked}: there is no such method; there are {', '.join(sorted(KNOWN))}.{more}")
    return KNOWN[name.lower()]()

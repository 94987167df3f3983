"""What is raised for misuse and broken promises. Numerical failure is never raised: it is data (`linalg.result`)."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """An argument, pairing or model that cannot work; says what was got, what is allowed and the next move."""


class MissingError(ConfigError, ImportError):
    """What was asked for needs an optional package that is not installed; says how to install it."""


class UnusableError(ConfigError):
    """An optimizer before which no method can work; others beside it may be fit."""


class StateError(ValueError):
    """A state dict of another model, configuration or format; names the keys and shapes."""


class LaunchError(RuntimeError):
    """A training that was started did not end as it should; carries what it said last."""


class TrustError(RuntimeError):
    """What runs is not what was asked for: a step that is never finished, a wrong update, ranks that differ."""


def installed_by(extra: str) -> str:
    """The command that installs what an extra of ours brings.

    From a clone: the package's name on a registry is nobody's yet, and anybody could take it.

    Args:
        extra: Its name in pyproject.toml.

    Returns:
        A line for a shell.
    """
    return f"pip install '.[{extra}]' in a clone of lightning_so"


def check_range(owner: str, name: str, value: float, low: float, high: float, *, closed: bool = True) -> None:
    """Raise `ConfigError` unless `low <= value <= high` (strictly below `high` if not `closed`).

    Args:
        owner: The class the argument belongs to, for the message.
        name: The argument's name.
        value: What was given.
        low: Smallest allowed value.
        high: Largest allowed value (or its bound, if not `closed`).
        closed: Whether `high` itself is allowed.

    Raises:
        ConfigError: If the value is outside the range or not a number.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and low <= value and (value <= high if closed else value < high):
        return
    bracket = "]" if closed else ")"
    raise ConfigError(f"{owner}({name}={value!r}): {name} must be a number in [{low:g}, {high:g}{bracket}.")


def check_count(owner: str, name: str, value: int, low: int, high: int) -> None:
    """Raise `ConfigError` unless a value is an integer and `low <= value <= high`.

    Args:
        owner: The class the argument belongs to, for the message.
        name: The argument's name.
        value: What was given.
        low: Smallest allowed value.
        high: Largest allowed value.

    Raises:
        ConfigError: If the value is outside the range or not an integer.
    """
    if not (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
        raise ConfigError(f"{owner}({name}={value!r}): {name} must be an integer in [{low}, {high}].")


def check_choice(owner: str, name: str, value: object, allowed: tuple) -> None:
    """Raise if a value is none of those that are allowed.

    Args:
        owner: Whose argument it is.
        name: The argument.
        value: What was given.
        allowed: What may be given.

    Raises:
        ConfigError: If it is none of them.
    """
    if value not in allowed:
        meant = nearest(value, [each for each in allowed if isinstance(each, str)])
        raise ConfigError(f"{owner}({name}={value!r}): {name} must be one of {list(allowed)}.{meant}")


def nearest(value: object, names: Iterable[str]) -> str:
    """The name that was probably meant.

    Args:
        value: What was given.
        names: What there is.

    Returns:
        A sentence for the end of an error, with a space before it; nothing if no name is near.

    Example:
        >>> nearest("housholder", ["householder", "cholesky"])
        " Did you mean 'householder'?"
    """
    found = get_close_matches(value.lower(), names, 1) if isinstance(value, str) else []
    return f" Did you mean {found[0]!r}?" if found else ""

"""Parameters by the layer that they are in."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from lightning_so.errors import ConfigError


def layers(names: Iterable[str], globs: Sequence[str], whose: str) -> dict[str, list[int]]:
    """The layers that some globs name.

    Args:
        names: Parameters: `blocks.0.weight` is in the layer `blocks.0`; one that is in no module is a layer itself.
        globs: Shell-style patterns of layers' names.
        whose: Who asks, for the message.

    Returns:
        Numbers of parameters, by the name of their layer, in the order of the parameters.

    Raises:
        ConfigError: If a glob fits no layer.
    """
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        found.setdefault(name.rpartition(".")[0] or name, []).append(number)
    for glob in globs:
        if not any(fnmatchcase(layer, glob) for layer in found):
            raise ConfigError(
                f"{whose}(layers={list(globs)}): {glob!r} fits no layer with parameters that are trained, which are "
                f"{list(found)[:10]}{' and more' if len(found) > 10 else ''}."
            )
    return {name: of for name, of in found.items() if any(fnmatchcase(name, glob) for glob in globs)}

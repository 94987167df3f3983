"""Embeddings, heads and hidden matrices; and the grammar in which users say otherwise."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from lightning_so.errors import ConfigError

ROLES = ("base", "hidden", "embedding", "head")
SPLIT = "split"
#: Role -> globs on parameters' names; and "split" -> globs and how many matrices a parameter is, see `plan.parts`.
Route = Mapping[str, Sequence[str] | Mapping[str, int]]


def structural_roles(model: nn.Module) -> dict[Tensor, str]:
    """Embeddings and the output head, found by structure and not by name.

    A head is a layer tied to an Embedding (one block, under its first name), or the last Linear in registration order
    whose out_features equals some Embedding's num_embeddings; in a model with a recurrent layer the last Linear.

    Args:
        model: The model.

    Returns:
        The role of each parameter that is not hidden.
    """
    embeddings = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    vocabularies = {m.num_embeddings for m in embeddings}
    roles: dict[Tensor, str] = {m.weight: "embedding" for m in embeddings}
    widths = {m.embedding_dim for m in embeddings}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if any(m.weight in roles for m in linears):
        return roles  # tied: the head is the embedding
    # A model whose width equals its number of positions has hidden layers of the head's size: such a layer is the head
    # only if no Linear follows it.
    heads = [
        m for m in linears if m.out_features in vocabularies and (m.out_features not in widths or m is linears[-1])
    ]
    if not heads and any(isinstance(m, nn.RNNBase) for m in model.modules()):
        heads = linears
    if heads:
        roles[heads[-1].weight] = "head"
    return roles


def overrides(route: Route | None, names: list[str]) -> dict[str, str]:
    """The roles that the user gives to parameters, by name.

    Args:
        route: What the user says.
        names: Those of the model's parameters.

    Returns:
        By name, the role of those that a glob matches.

    Raises:
        ConfigError: If a role is none, or a glob matches no parameter.
    """
    chosen: dict[str, str] = {}
    for role, globs in (route or {}).items():
        if role == SPLIT:
            continue
        if role not in ROLES or isinstance(globs, Mapping):
            raise ConfigError(
                f"route={{{role!r}: {globs!r}}}: the role must be one of {', '.join(ROLES)}, with globs on names; or "
                f"{SPLIT!r}, with globs and counts."
            )
        for glob in [globs] if isinstance(globs, str) else globs:
            chosen.update(dict.fromkeys(matching(f"route={{{role!r}: [{glob!r}]}}", glob, names), role))
    return chosen


def matching(what: str, glob: str, names: list[str]) -> list[str]:
    """The names that a glob matches.

    Args:
        what: What the user has given, for the message.
        glob: The glob.
        names: Those of the model's parameters.

    Returns:
        At least one.

    Raises:
        ConfigError: If none is matched.
    """
    hits = [name for name in names if fnmatchcase(name, glob)]
    if not hits:
        raise ConfigError(f"{what} matches no parameter; names are like {names[:3]}.")
    return hits

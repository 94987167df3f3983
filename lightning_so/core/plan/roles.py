"""Embeddings, heads and hidden matrices."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from lightning_so.errors import ConfigError

ROLES = ("base", "hidden", "embedding", "head")


def structural_roles(model: nn.Module) -> dict[Tensor, str]:
    """Embeddings and the output head, found by structure and not by name.

    A head is a layer tied to an Embedding (one block, under its first name), or the last Linear in registration order
    whose out_features equals some Embedding's num_embeddings.

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
    if heads:
        roles[heads[-1].weight] = "head"
    return roles


def overrides(roles: Mapping[str, Sequence[str]] | None, names: list[str]) -> dict[str, str]:
    """The roles that the user gives to parameters, by name.

    Args:
        roles: Role -> globs on names.
        names: Those of the model's parameters.

    Returns:
        By name, the role of those that a glob matches.

    Raises:
        ConfigError: If a role is none, or a glob matches no parameter.
    """
    chosen: dict[str, str] = {}
    for role, globs in (roles or {}).items():
        if role not in ROLES:
            raise ConfigError(f"route={{{role!r}: ...}}: the role must be one of {', '.join(ROLES)}.")
        for glob in [globs] if isinstance(globs, str) else globs:
            hits = [name for name in names if fnmatchcase(name, glob)]
            if not hits:
                raise ConfigError(f"route={{{role!r}: [{glob!r}]}} matches no parameter; names are like {names[:3]}.")
            chosen.update(dict.fromkeys(hits, role))
    return chosen

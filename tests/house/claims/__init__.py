"""How each figure of the pages is computed: by page, texts with "{}" for figures, and the values of these.

A figure comes from a results file (`tests/support/results.py` reads them), or from a constant of the code. What is set
and not measured, a learning rate, say, is in `GIVEN`, word by word.
"""

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

CLAIMS: dict[str, dict[str, Sequence[float]]] = {}
GIVEN: dict[str, list[str]] = {}
for _part in (import_module(f"{__name__}.{part.name}") for part in iter_modules(__path__)):
    for _page, _claims in _part.CLAIMS.items():
        assert not CLAIMS.get(_page, {}).keys() & _claims.keys(), f"{_part.__name__} claims what another file claims"
        CLAIMS.setdefault(_page, {}).update(_claims)
    for _page, _texts in getattr(_part, "GIVEN", {}).items():
        GIVEN.setdefault(_page, []).extend(_texts)

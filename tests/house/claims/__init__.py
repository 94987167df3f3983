"""How each figure of the pages is computed: by page, texts with "{}" for figures, and the values of these.

A figure comes from a results file (`tests/support/results.py` reads them), or from a constant of the code. What is set
and not measured, a learning rate, say, is in `GIVEN`, word by word.
"""

from importlib import import_module
from pkgutil import iter_modules

_PARTS = [import_module(f"{__name__}.{part.name}") for part in iter_modules(__path__)]
CLAIMS = {page: claims for part in _PARTS for page, claims in part.CLAIMS.items()}
GIVEN = {page: texts for part in _PARTS for page, texts in getattr(part, "GIVEN", {}).items()}

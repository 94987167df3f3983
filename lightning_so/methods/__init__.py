"""One file a method; importing the package has their names known to rules, all of them."""

import importlib
import pkgutil

for _each in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_each.name)

"""The version, which pyproject.toml says and the installed package's metadata repeat."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lightning-so")
except PackageNotFoundError:  # Sources on the path, without an installation.
    __version__ = "0+unknown"

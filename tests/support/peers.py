"""Packages that tests use and the environment does not have, in a folder of their own."""

import importlib.machinery
import sys
from pathlib import Path

import pytest

#: Where `make test` puts them.
PEERS = Path(__file__).parents[2] / ".venv" / "peers"
DEEPSPEED = importlib.machinery.PathFinder.find_spec("deepspeed", [*sys.path, str(PEERS)])
needs_deepspeed = pytest.mark.skipif(DEEPSPEED is None, reason="deepspeed is not there: make test puts it there")

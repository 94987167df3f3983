"""Beside what a user can install: other packages' optimizers and ours, side by side."""

import sys
from pathlib import Path

#: Where `make bench-peers` puts the packages.
FOLDER = Path(".venv/bench-peers")
# Before torch is imported: it looks once for opt_einsum, without which a product of three factors is taken from the
# left, the outer product of two Kronecker factors first.
sys.path.append(str(FOLDER))

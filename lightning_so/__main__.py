"""`python -m lightning_so`: the command `lightning-so`, where scripts are not on the PATH."""

import sys

from lightning_so.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())

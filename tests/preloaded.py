"""What `multiprocessing` imports where ranks are forked (`tests.forked`), once for all of them."""

import os
import sys

import tests.faults  # noqa: F401
from tests.peers import DEEPSPEED, PEERS

if DEEPSPEED is not None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    sys.path.append(str(PEERS))
    import lightning_so.strategies.deepspeed  # noqa: F401

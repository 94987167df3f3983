"""What `multiprocessing` imports where ranks are forked (`tests.support.forked`), once for all of them."""

import gc
import os
import sys

import tests.support.faults  # noqa: F401
from tests.support.peers import DEEPSPEED, PEERS

if DEEPSPEED is not None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    sys.path.append(str(PEERS))
    import lightning_so.strategies.deepspeed  # noqa: F401

gc.freeze()  # DeepSpeed collects garbage in every training; what was imported is looked through no more.

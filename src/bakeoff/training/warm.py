"""What the fork server of ``process`` imports once for all its workers.

Nothing here may touch CUDA: a process forked after that cannot use it. bitsandbytes asks the GPU as
soon as it is imported, and PEFT imports it wherever it is installed; there, each worker imports
PEFT for itself.

What was imported is frozen: no collection looks through it again, which a worker would otherwise
do several times a trial, a quarter of a second each, copying the pages that it shares with others.
"""

from __future__ import annotations

import gc
from importlib import import_module
from importlib.util import find_spec

import torch

import_module("transformers")  # half of what a worker imports
if torch.version.cuda is None or find_spec("bitsandbytes") is None:
    import_module("bakeoff.training.preflight.checks")
gc.collect()
gc.freeze()

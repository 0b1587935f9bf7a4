"""Imports that the fork server does once for all workers.

The signals come first. A job system sends SIGTERM to every process of a job at once, and a closed
terminal sends SIGHUP. If the fork server ended then, its workers would be killed before they save
their checkpoints; so it ignores both, and ends with the parent instead.

Nothing here may touch CUDA: a forked process cannot use it afterwards. bitsandbytes initialises the
GPU on import, and PEFT imports bitsandbytes wherever it is installed. There, each worker imports
PEFT for itself.

The imported objects are frozen: otherwise the garbage collector would scan them several times a
trial, a quarter of a second each, and copy the pages that workers share.
"""

from __future__ import annotations

import gc
import signal
from importlib import import_module
from importlib.util import find_spec

signal.signal(signal.SIGTERM, signal.SIG_IGN)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

# the fork server prints to the user's terminal; a signal during these imports must not end it
with import_module("bakeoff.core.worker_log").discard_output():
    torch = import_module("torch")
    import_module("transformers")  # half of what a worker imports
    if torch.version.cuda is None or find_spec("bitsandbytes") is None:
        import_module("bakeoff.training.preflight.checks")
gc.collect()
gc.freeze()

"""What the fork server of ``executors.process`` imports first: its manners.

A job system sends SIGTERM to every process of a job at once, a terminal that goes away SIGHUP. If
the fork server ended at it, its workers would be killed before their trials' states are kept; it
ends with the parent instead.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

"""What the fork server of ``executors.process`` imports first: its manners.

A job system sends SIGTERM to every process of a job at once. If the fork server ended at it, its
workers would be killed before their trials' states are kept; it ends with the parent instead.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)

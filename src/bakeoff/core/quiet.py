"""Silence what libraries print while bakeoff tries things out."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Ignore Python warnings and log records up to WARNING; restore both afterwards.

    Workers stay alive between payloads, so logging must be restored after an exception too.
    """
    previous = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)

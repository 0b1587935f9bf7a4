"""Silence libraries while methods are tried."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Ignore warnings and log records up to WARNING inside the block.

    What libraries warn of is recorded when the trials run. The logging state is restored on errors
    too: a worker goes on to other work in the same process.
    """
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)

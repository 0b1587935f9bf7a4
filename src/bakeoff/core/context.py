"""Set a context variable for the time of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeVar

Value = TypeVar("Value")


@contextlib.contextmanager
def set_in_block(variable: ContextVar[Value | None], value: Value) -> Iterator[Value]:
    """Give ``variable`` this value in the block, and the former one after it."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)

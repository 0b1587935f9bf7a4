"""Keep PEFT from building BOFT's CUDA extension."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import peft.tuners.boft.layer as boft


@contextlib.contextmanager
def disable_boft_extension() -> Iterator[None]:
    """Let BOFT layers that are created in the block use PEFT's plain formula.

    PEFT tries to build a CUDA extension when the first BOFT layer is created, which takes minutes
    with or without a compiler, and changes the layer's butterfly factor if it succeeds. A layer
    keeps the choice that was made at its creation.
    """
    before = boft._FBD_CUDA
    boft._FBD_CUDA = False
    try:
        yield
    finally:
        boft._FBD_CUDA = before

"""BOFT never uses PEFT's CUDA extension, without a lasting change to PEFT."""

from __future__ import annotations

import peft.tuners.boft.layer as boft
import pytest

from bakeoff.methods.boft_extension import disable_boft_extension


def test_extension_disabled_in_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT does not build the extension in the block, and may after it."""
    monkeypatch.setattr(boft, "_FBD_CUDA", None)
    with disable_boft_extension():
        assert boft.get_fbd_cuda() is False
    assert boft._FBD_CUDA is None

"""Headers of safetensors files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bakeoff.core.safe_read import Header, read_header


@pytest.fixture
def raw(tmp_path: Path) -> bytes:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(10, dtype=np.float32), "b": np.zeros(2)}, path, {"key": "value"})
    return path.read_bytes()


def header_of(raw: bytes) -> Header | None:
    return read_header(io.BytesIO(raw), len(raw))


def test_header_gives_size_and_metadata(raw: bytes) -> None:
    header = header_of(raw)
    assert header is not None
    assert (header.begin, header.end) == (len(raw) - 56, len(raw))
    assert (header.tensors, header.metadata) == (2, {"key": "value"})


def test_header_of_truncated_tensors(raw: bytes) -> None:
    header = header_of(raw[:-10])
    assert header is not None
    assert header.end == len(raw)


@pytest.mark.parametrize("length", [0, 5, 8, 20])
def test_truncated_header(raw: bytes, length: int) -> None:
    assert header_of(raw[:length]) is None


@pytest.mark.parametrize("text", ["not json", "[1]", '{"a": [1]}', '{"a": {"data_offsets": []}}'])
def test_broken_header(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # JSON's message or ours
        header_of(len(text).to_bytes(8, "little") + text.encode())

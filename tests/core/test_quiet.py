"""Silencing libraries, and restoring logging afterwards."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from bakeoff.core.worker_log import quiet_libraries


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    previous = logging.root.manager.disable
    yield
    logging.disable(previous)


def test_hides_warnings_and_log_records(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught, quiet_libraries():
        warnings.warn("a library's warning", UserWarning, stacklevel=1)
        logging.getLogger("peft").warning("a library's log record")
    assert not caught
    assert not caplog.records
    logging.getLogger("peft").warning("shown again")
    assert [r.message for r in caplog.records] == ["shown again"]


def test_restores_logging_after_error() -> None:
    """Workers stay alive between payloads: an error must not leave logging off."""
    logging.disable(logging.DEBUG)
    with pytest.raises(ValueError, match="inside"), quiet_libraries():
        raise ValueError("inside")
    assert logging.root.manager.disable == logging.DEBUG


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def test_command_line_hides_library_lines() -> None:
    """Warnings and records of libraries are hidden; those of bakeoff and errors are seen."""
    found = run_python(
        "import logging, warnings\n"
        "from bakeoff.core.worker_log import quiet_command_line\n"
        "quiet_command_line()\n"
        "warnings.warn('a warning of torch')\n"
        "logging.getLogger('bitsandbytes').warning('Failed to load CPU gemm_4bit_forward')\n"
        "logging.getLogger('bakeoff.study').warning('a node was lost')\n"
        "raise RuntimeError('a real error')\n"
    )
    assert "gemm_4bit" not in found.stderr
    assert "torch" not in found.stderr.replace("bakeoff.study", "")
    assert "a node was lost" in found.stderr
    assert "RuntimeError: a real error" in found.stderr


def test_discarded_output_ends_before_an_error() -> None:
    """Nothing inside the block is printed, not even from C; its exception is."""
    found = run_python(
        "import os, sys\n"
        "from bakeoff.core.worker_log import discard_output\n"
        "with discard_output():\n"
        "    print('Loading weights: 0%|', file=sys.stderr)\n"
        "    print('UNEXPECTED: lm_head')\n"
        "    os.write(2, b'from C')\n"
        "print('after')\n"
        "with discard_output():\n"
        "    raise ImportError('torch is broken')\n"
    )
    assert found.stdout == "after\n"
    assert "Loading" not in found.stderr
    assert "from C" not in found.stderr
    assert "ImportError: torch is broken" in found.stderr

"""Silencing libraries, and restoring logging afterwards."""

from __future__ import annotations

import logging
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

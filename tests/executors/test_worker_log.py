"""The log files of workers: what is in them, at which level, and that they change no result."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import kills
from helpers.command import bakeoff

from bakeoff import api
from bakeoff.core import worker_log
from bakeoff.core.errors import UsageError
from bakeoff.core.worker_log import quiet_libraries
from bakeoff.study.executors import Options
from bakeoff.study.executors.inline import Inline
from bakeoff.study.storage.repair import BAD, diagnose


def write_record(value: dict[str, Any]) -> dict[str, Any]:
    """Log at two levels, as a worker's function."""
    log = logging.getLogger("bakeoff.training.segment")
    log.info("quiet\nhf_0123456789abcdef")
    log.warning("loud")
    return {"level": log.getEffectiveLevel()}


def payload(folder: Path) -> dict[str, Any]:
    """Return a payload that looks like a segment of the study in ``folder``."""
    return {"folder": str(folder), "trials": []}


def run_inline(value: dict[str, Any]) -> Any:
    (outcome,) = Inline().map(f"{__name__}:write_record", [value])
    return outcome


@pytest.fixture(autouse=True)
def default_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(worker_log.LEVEL_VARIABLE, raising=False)


def test_info_level_logs_trials(tmp_path: Path) -> None:
    """A run with level `info` logs its trials and gives the same numbers."""
    values = kills.small(tmp_path)
    values["budget"] |= {"steps": 8, "settings": 2, "seeds": 2}
    for executor in ("inline", "process"):
        values["engine"] |= {"executor": executor}
        (tmp_path / f"{executor}.toml").write_text(tomli_w.dumps(values))
    quiet = bakeoff("run", "inline.toml", "--out", "quiet", cwd=tmp_path)
    assert quiet.returncode == 0, quiet.stderr
    assert not (tmp_path / "quiet" / worker_log.FOLDER).exists(), "nothing to warn of"
    out = tmp_path / "process"
    logged = bakeoff("run", "process.toml", "--out", "process", "--log-level", "INFO", cwd=tmp_path)
    assert logged.returncode == 0, logged.stderr
    text = (out / worker_log.FOLDER / "worker-0.log").read_text(encoding="utf-8")
    ids = [trial.id for trial, _ in api.read_trials(out)]
    assert ids
    assert all(f"trial {name}: " in text for name in ids)
    for message in (
        "segment start",
        "base model loaded",
        "accelerators for",
        "reached the rung",
        "scoring ended",
    ):
        assert message in text
    assert " DEBUG " not in text
    assert kills.trial_rows(out) == kills.trial_rows(tmp_path / "quiet")
    assert [f for f in diagnose(out) if f.state == BAD] == []


def test_default_level_logs_warnings_only(tmp_path: Path) -> None:
    assert run_inline(payload(tmp_path)).value == {"level": logging.WARNING}
    lines = (tmp_path / "logs" / "worker-0.log").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("bakeoff.training.segment: loud")


def test_messages_are_sanitized_and_indented(tmp_path: Path) -> None:
    with worker_log.use_level("debug"):
        run_inline(payload(tmp_path))
    first, second, _ = (tmp_path / "logs" / "worker-0.log").read_text().splitlines()
    assert first.endswith("quiet")
    assert second == "    [redacted]"


def test_level_and_handlers_are_restored(tmp_path: Path) -> None:
    logger = logging.getLogger("bakeoff")
    before = logger.level, list(logger.handlers)
    with worker_log.use_level("info"), quiet_libraries():
        run_inline(payload(tmp_path))
    assert (logger.level, logger.handlers) == before


def test_payload_without_segment_is_not_logged(tmp_path: Path) -> None:
    assert run_inline({"folder": str(tmp_path)}).error is None
    assert run_inline({}).error is None
    assert list(tmp_path.iterdir()) == []


def test_unwritable_log_is_ignored(tmp_path: Path) -> None:
    """A log that cannot be written does not stop a worker."""
    (tmp_path / "logs").write_text("a file where the folder would be")
    assert run_inline(payload(tmp_path)).error is None
    assert run_inline(payload(tmp_path / "gone")).error is None


def test_unknown_level_suggests_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown log level is refused with the nearest match."""
    with pytest.raises(UsageError, match=r"unknown-log-level.*'inof'") as caught:
        worker_log.parse_level("inof")
    assert caught.value.try_ == "did you mean 'info'? Known: debug, error, info, warning."
    monkeypatch.setenv(worker_log.LEVEL_VARIABLE, "chatty")
    with pytest.raises(UsageError, match="unknown-log-level"):
        Inline(1, Options())
    refused = bakeoff("run", "study.toml", "--log-level", "inof", cwd=tmp_path)
    assert refused.returncode == UsageError.exit_code
    assert "did you mean 'info'?" in refused.stderr

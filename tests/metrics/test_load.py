"""A study's metric is found, its options are checked, and what fails on an item names the item."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bakeoff.core import plugins
from bakeoff.core.record import MetricInfo
from bakeoff.metrics.load import describe
from bakeoff.metrics.run import Metric, MetricError

DOCS = Path(__file__).parents[2] / "docs"
FRACTION = MetricInfo("mine", better="higher", unit="fraction", low=0.0, high=1.0)
OWN = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Weights:
    near: float = 0.5

def score(prediction: str, reference: str, tolerance: int = 0, *, weigh: bool = False) -> float:
    return float(abs(len(prediction) - len(reference)) <= tolerance)

def needs(prediction, reference, *, steps):
    return 0.0

def alone(prediction):
    return 0.0

limit = 3
"""


def described(metric: str, folder: Path, **options: Any) -> dict[str, Any]:
    return describe({"metric": metric, "options": options, "folder": str(folder)})


def refused(metric: str, folder: Path, **options: Any) -> dict[str, Any]:
    error: dict[str, Any] = described(metric, folder, **options)["error"]
    return error


def test_options_completed_or_refused(tmp_path: Path) -> None:
    """Missing options get defaults and wrong ones are refused."""
    found = described("numeric", tmp_path, tolerance=1)
    assert found["error"] is None
    assert found["options"] == {"tolerance": 1, "marker": False, "timeout": 10.0}
    assert described("loss", tmp_path)["of_losses"] is True

    wrong = {
        "metric-option-unknown": [("numeric", {"tolerence": 1}), ("accuracy", {"x": 1})],
        "metric-option-missing": [("regex", {})],
        "metric-option": [
            ("regex", {"pattern": "(a"}), ("regex", {"pattern": 3}),
            ("numeric", {"tolerance": True}), ("numeric", {"marker": 1}),
            ("numeric", {"tolerance": -1.0}), ("chrf", {"word_order": -1}),
            ("accuracy", {"timeout": 0}), ("accuracy", {"timeout": "1"}),
        ],
    }  # fmt: skip
    for code, cases in wrong.items():
        for metric, options in cases:
            error = refused(metric, tmp_path, **options)
            assert (error["code"], error["exit"]) == (code, 2), (metric, options)
            assert error["try"]
    assert "did you mean 'tolerance'?" in refused("numeric", tmp_path, tolerence=1)["try"]
    assert "position 0" in refused("regex", tmp_path, pattern="(a")["cause"]


def test_missing_package_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing package is named before training."""
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = refused("chrf", tmp_path)
    assert (error["code"], error["exit"]) == ("metric-package-missing", 6)
    assert "pip install 'bakeoff[chrf]'" in error["try"]


def test_user_metric_function(tmp_path: Path) -> None:
    """A user's own metric function is loaded."""
    (tmp_path / "score.py").write_text(OWN, encoding="utf-8")
    found = described("score.py:score", tmp_path, better="lower", low=0, tolerance=2)
    assert found["error"] is None
    assert found["info"] == {
        "name": "score.py:score", "better": "lower", "unit": "score", "low": 0, "high": None,
    }  # fmt: skip
    assert found["options"] == {
        "better": "lower", "unit": "score", "low": 0, "tolerance": 2, "weigh": False,
        "timeout": 10.0,
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "score.py"], "no byte code beside it"


@pytest.mark.parametrize(
    ("metric", "options", "code"),
    [
        ("other.py:score", {}, "metric-file-missing"),
        ("score.py:scor", {}, "metric-function-missing"),
        ("score.py:limit", {}, "metric-function-missing"),
        ("score.py", {}, "metric-function-unnamed"),
        ("score.py:alone", {}, "metric-signature"),
        ("score.py:needs", {}, "metric-option-missing"),
        ("score.py:score", {"tolerence": 1}, "metric-option-unknown"),
        ("score.py:score", {"tolerance": 0.5}, "metric-option"),
        ("score.py:score", {"better": "more"}, "metric-option"),
        ("score.py:score", {"low": 1, "high": 1}, "metric-option"),
        ("score.py:score", {"low": "0"}, "metric-option"),
        ("score.py:score", {"unit": ""}, "metric-option"),
        ("broken.py:score", {}, "metric-not-loadable"),
        ("needy.py:score", {}, "metric-not-loadable"),
    ],
)
def test_invalid_metric_refused(
    metric: str, options: dict[str, Any], code: str, tmp_path: Path
) -> None:
    """An invalid metric is refused with the reason."""
    (tmp_path / "score.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "broken.py").write_text("def score(:\n", encoding="utf-8")
    (tmp_path / "needy.py").write_text("import score\n", encoding="utf-8")
    error = refused(metric, tmp_path, **options)
    assert (error["code"], error["exit"]) == (code, 2)
    if code == "metric-function-missing" and metric.endswith("scor"):
        assert "did you mean 'score'?" in error["try"]


EXAMPLES = {
    "json_match": '{"a": 1}', "json_fields": '{"a": 1}', "json_valid": "[]", "numeric": "#### 7",
}  # fmt: skip


@pytest.mark.parametrize("name", plugins.list_plugins("metrics.builtin"))
def test_every_metric_keeps_the_contract(name: str, tmp_path: Path) -> None:
    module = plugins.load_plugin("metrics.builtin", name, "metric")
    assert module.INFO.name == name
    assert module.INFO.better in ("higher", "lower")
    given = {"pattern": "(?s)(.*)"} if name == "regex" else {}
    assert described(name, tmp_path, **given)["error"] is None
    assert module.TASKS
    assert set(module.TASKS) <= set(plugins.list_plugins("tasks"))
    assert f"`{name}`" in (DOCS / "metrics.md").read_text(encoding="utf-8")
    if hasattr(module, "score_loss"):
        return
    truth = EXAMPLES.get(name, "the reference")
    metric = Metric(module.INFO, module.score, given)
    best = module.INFO.high if module.INFO.better == "higher" else module.INFO.low
    assert metric.score([truth], [truth], "test") == [best]
    (nothing,) = metric.score([""], [truth], "test")
    assert nothing == (module.INFO.low if module.INFO.better == "higher" else module.INFO.high)
    for odd in ("\ud83d\ude00" * 3, "\x00", "9" * 5000, "[" * 5000, "\n" * 1000, "a" * 50_000):
        metric.score([odd], [truth], "test")


def one(function: Any, info: MetricInfo = FRACTION, timeout: float = 10.0) -> MetricError:
    metric = Metric(info, function, timeout=timeout)
    with pytest.raises(MetricError) as error:
        metric.score(["fine", "bad"], ["fine", "ref"], "test")
    assert "item 2 of test" in error.value.cause
    return error.value


def test_failure_names_item_and_input() -> None:
    """A failure names the item and its input."""
    error = one(lambda p, r: 1.0 if p == "fine" else p + 1)
    assert error.code == "metric-failed"
    assert "answer 'bad', reference 'ref'" in error.cause
    assert "TypeError" in error.cause


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1.0", [1.0], 1.5, -0.5, 1j])
def test_non_score_refused(value: Any) -> None:
    """A value that is no score is refused."""
    assert one(lambda p, r: 1.0 if p == "fine" else value).code == "metric-result"


def test_any_real_number_is_a_score() -> None:
    import numpy as np

    values = iter([True, 1, np.float32(0.5), np.int64(0)])
    metric = Metric(FRACTION, lambda p, r: next(values))
    assert metric.score(["a"] * 4, ["a"] * 4, "test") == [1.0, 1.0, 0.5, 0.0]


def test_slow_item_interrupted() -> None:
    """A slow item is interrupted and named."""
    started = time.monotonic()
    evil = "a" * 60 + "!"
    from bakeoff.metrics.builtin import regex

    error = one(
        lambda p, r: 1.0 if p == "fine" else regex.score(evil, "", pattern=r"(?:a|a)*$"),
        timeout=0.3,
    )
    assert error.code == "metric-slow"
    assert time.monotonic() - started < 3

    def stubborn(prediction: str, reference: str) -> float:
        until = time.monotonic() + 0.5
        while prediction == "bad" and time.monotonic() < until:
            with contextlib.suppress(Exception):
                time.sleep(0.01)
        return 1.0

    assert one(stubborn, timeout=0.2).code == "metric-slow"


def test_slow_item_outside_main_thread() -> None:
    """Outside the main thread, a slow item is named afterwards."""
    heard: list[str] = []

    def work() -> None:
        slow = one(lambda p, r: time.sleep(0.2 if p == "bad" else 0) or 1.0, timeout=0.1)
        heard.append(slow.code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == ["metric-slow"]


@pytest.mark.skipif(sys.platform == "win32", reason="no alarms there")
def test_caller_alarm_restored() -> None:
    """The alarm of the caller is restored."""
    rang: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    left, every = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        Metric(FRACTION, lambda p, r: 1.0).score(["a"], ["a"], "test")
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.3
        time.sleep(0.5)
        assert rang == [1]
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left, every)


def test_nonfinite_loss_gives_no_score() -> None:
    """A loss that is not finite gives no score."""
    from bakeoff.metrics.builtin import loss

    metric = Metric(loss.INFO, loss.score_loss, of_losses=True)
    assert metric.score_losses([6.0, 1.0], [4.0, 2.0], "test") == [1.5, 0.5]
    with pytest.raises(MetricError, match="item 1 of test"):
        metric.score_losses([float("nan")], [1.0], "test")

"""The first signal asks a study to stop, the second stops it; a terminal may go away."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bakeoff.core.errors import Interrupted, Terminated
from bakeoff.study.monitoring.progress import LoggingProgress, Progress
from bakeoff.study.monitoring.signals import handle_signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="other signals there")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("sent", "first", "second"),
    [
        (signal.SIGINT, Interrupted, KeyboardInterrupt),
        (signal.SIGTERM, Terminated, SystemExit),
        (signal.SIGHUP, Terminated, SystemExit),
    ],
)
def test_second_signal_stops_immediately(
    sent: signal.Signals, first: type[Interrupted], second: type[BaseException]
) -> None:
    """The first signal asks for a stop and the second stops immediately.

    Faults 5 and 6: Ctrl-C, a job system, a terminal that is closed.
    """
    said: list[str] = []
    signal.signal(sent, signal.SIG_DFL)  # these tests may run under `nohup` themselves
    with handle_signals(said.append) as stop:
        stop.check()
        os.kill(os.getpid(), sent)
        assert stop()
        assert stop()
        assert said == ["stopping at the next checkpoint; press Ctrl-C again to stop immediately"]
        with pytest.raises(Interrupted) as asked:
            stop.check()
        assert type(asked.value) is first
        with pytest.raises(second) as at_once:
            os.kill(os.getpid(), sent)
    if second is SystemExit:
        assert at_once.value.code == 143  # type: ignore[attr-defined]


def test_nohup_survives_hangup() -> None:
    """A process that ignores SIGHUP outlives its terminal.

    Fault 6: `nohup bakeoff run ...`
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with handle_signals(print) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_closed_terminal_keeps_study(tmp_path: Path) -> None:
    """A closed terminal does not end a study.

    Fault 6: what nobody hears any more is still logged.
    """

    class Gone(Progress):
        def say(self, text: str) -> None:
            raise OSError(5, "Input/output error")

        def advance(self, what: str) -> None:
            raise AssertionError("it was told again")

    heard = LoggingProgress(tmp_path / "log.jsonl", Gone())
    heard.phase("Search", 2, 0)
    heard.say("warning")
    heard.advance("lora")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["phase", "say", "advance"]

"""What a study shows while it runs: in terminals wide and narrow, piped, and to `status`."""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.records import hits, make_cost, make_entry, make_result, make_trial

from bakeoff.cli.display import status_block
from bakeoff.cli.display.output import SafeConsole
from bakeoff.cli.display.progress import LiveProgress
from bakeoff.core.results import Cost, Status
from bakeoff.report.live.study_feed import StudyFeed
from bakeoff.study.monitoring.progress import (
    LOG,
    NOW,
    Job,
    LoggingProgress,
    Progress,
    with_events,
)
from bakeoff.study.monitoring.progress_estimate import PhaseProgress, RunningJob
from bakeoff.study.monitoring.status import (
    DONE,
    RUNNING,
    STOPPED,
    MethodStatus,
    StudyStatus,
    read_status,
)
from bakeoff.study.storage import lock
from bakeoff.study.storage.database import Writer

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
METRIC = {"name": "accuracy", "better": "higher", "unit": "fraction", "low": 0.0, "high": 1.0}
RATES = (1e-4, 1e-3, 1e-2)
GROUP = [make_trial("oft", rate) for rate in RATES]
WORK = Job("search", "oft", "OFT", tuple(t.id for t in GROUP), 0, 100)


def begin(folder: Path, **more: Any) -> None:
    """Write the rows of a study: LoRA's search is done, OFT's is planned, IA3 cannot run."""
    folder.mkdir(parents=True, exist_ok=True)
    with Writer(folder / "study.db") as store:
        store.set_all(
            {
                "about": {
                    "methods": ["lora", "oft", "ia3"],
                    "titles": {"lora": "LoRA", "oft": "OFT", "ia3": "IA3"},
                    "metric": METRIC,
                },
                "spec": {"name": "hand-made", "engine": {"workers": 1}, "budget": {}},
                **more,
            }
        )
        lora = [make_trial("lora", rate) for rate in RATES]
        store.add_trials([*lora, *GROUP])
        for trial, loss in zip(lora, (0.9, 0.5, float("nan")), strict=True):
            bad = loss != loss
            store.save(
                make_result(
                    trial, losses=(2 * loss, loss), train_tokens=4000, step=100,
                    status=Status.DIVERGED if bad else Status.DONE, reason="nan" if bad else None,
                )
            )  # fmt: skip
        for cost in (make_cost("lora"), make_cost("oft", step_ms=20.0)):
            store.save_cost(cost)
        store.save_cost(Cost("ia3", Status.INCOMPATIBLE, "it has no such layer"))


def go_on(folder: Path) -> LoggingProgress:
    """Tell that OFT's group is in flight."""
    log = LoggingProgress(folder / LOG, Progress())
    log.phase("Search", 6, 3)
    log.on_start(WORK)
    return log


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Path]:
    """A study that this process runs, with one group in flight."""
    begin(tmp_path)
    with lock.hold_lock(tmp_path):
        log = go_on(tmp_path)
        yield tmp_path
        log.close()


def test_status_shows_running_work(study: Path) -> None:
    """`bakeoff status` shows the running work."""
    found = read_status(study, mine=True)
    assert (found.state, found.holder is not None) == (RUNNING, True)
    assert (found.done, found.planned, found.costs) == (3, 6, 3)
    (flying,) = found.works
    assert (flying.title, flying.lanes, flying.start, flying.stop) == ("OFT", 3, 0, 100)
    lora, oft, ia3 = found.methods
    assert (lora.control, lora.validation, lora.step, lora.failed) == (True, 0.5, 100, 1)
    assert lora.tokens_per_second == found.tokens_per_second == 3 * 4000 / 6.0
    assert (oft.validation, oft.test, oft.tokens_per_second) == (None, None, None)
    assert ia3.incompatible == "it has no such layer"
    assert found.phase is not None
    assert (found.phase.title, found.phase.before) == ("Search", 3)


def test_remaining_time_from_trial_durations(study: Path) -> None:
    """The remaining time is estimated from the durations of finished trials."""
    # LoRA's took 2.75 s each; OFT's steps take twice as long in the cost probe: 3 x 5.5 s
    left = read_status(study, mine=True).phase_seconds_left
    assert left is not None
    assert 16.5 - 5 < left <= 16.5
    assert read_status(study, mine=True).study_seconds_left is None, "the final trials are unknown"


def test_live_view_estimates_same_time_left(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live view and the status command show the same time left."""
    monkeypatch.setattr("bakeoff.study.monitoring.status.seconds_since", lambda _: 1.0)
    left = read_status(study, mine=True).phase_seconds_left
    assert left == pytest.approx(15.5)
    assert StudyFeed(study, "one").status()["seconds_left"] == left


def test_no_estimate_without_durations(tmp_path: Path) -> None:
    """Without durations, no remaining time is estimated."""
    with Writer(tmp_path / "study.db") as store:
        store.add_trials(GROUP)
    with lock.hold_lock(tmp_path):
        log = go_on(tmp_path)
        found = read_status(tmp_path, mine=True)
        log.close()
    assert (found.phase_seconds_left, found.study_seconds_left) == (None, None)
    assert found.tokens_per_second is None
    drawn = text_of(found, 60)
    assert "left" not in drawn
    assert "tokens/s" not in drawn


def test_time_budget_gives_remaining_time(tmp_path: Path) -> None:
    """A time budget determines the remaining time of the study."""
    begin(tmp_path, hours={"fit": {"hours": 1.0}}, **{"wall:1": 420.0})
    with lock.hold_lock(tmp_path):
        log = go_on(tmp_path)
        left = read_status(tmp_path, mine=True).study_seconds_left
        log.close()
    assert left is not None
    assert left == pytest.approx(0.95 * 3600 - 420, abs=30)


def test_states_of_a_study(tmp_path: Path) -> None:
    begin(tmp_path)
    go_on(tmp_path)  # what a killed process left: nobody holds the lock
    found = read_status(tmp_path)
    assert (found.state, found.works, found.phase, found.holder) == (STOPPED, (), None, None)
    assert not (tmp_path / ".lock").exists(), "a glance writes nothing"
    with Writer(tmp_path / "study.db") as store:
        for trial in GROUP:
            store.save(make_result(trial, status=Status.FAILED, reason="x"))
        final = [make_trial("lora", 1e-3, seed, "final") for seed in (1, 2)]
        store.add_trials(final)
        for trial, right in zip(final, (30, 20), strict=True):
            store.save(make_result(trial, test=hits(right, 40)))
    found = read_status(tmp_path)
    assert found.state == DONE
    assert (found.methods[0].test, found.methods[0].n_seeds) == (0.625, 2)


def test_stale_process_notes_ignored(tmp_path: Path) -> None:
    """The notes of another process are ignored."""
    begin(tmp_path)
    go_on(tmp_path)
    note = json.loads((tmp_path / NOW).read_text())
    (tmp_path / NOW).write_text(json.dumps({**note, "pid": note["pid"] + 1}))
    with lock.hold_lock(tmp_path):
        assert read_status(tmp_path, mine=True).works == ()
    LoggingProgress(tmp_path / LOG, Progress()).close()
    assert (tmp_path / NOW).is_file(), "one that wrote none removes none"


def make_status(count: int = 3, **more: Any) -> StudyStatus:
    names = ["lora", "full", *(f"method{i}" for i in range(count))][:count]
    rows = tuple(
        MethodStatus(
            n, make_entry(n).title, n == "lora", 3, 8, 0.5 + i / 100, 300, 0.8123, 3, 12345.6, 0,
            None,
        )
        for i, n in enumerate(names)
    )  # fmt: skip
    given: dict[str, Any] = {
        "folder": "runs/x", "name": "x", "state": RUNNING, "holder": None, "rows": [],
        "phase": PhaseProgress("Search, wider (1)", 12, 40, 0, 200.0),
        "works": tuple(RunningJob("search", n, n.upper(), 5, 0, 300, (), 41.0) for n in names),
        "done": 12, "planned": 40, "costs": 3, "methods": rows, "metric": METRIC,
        "select_on": "loss", "tokens_per_second": 12345.6, "workers": 2,
        "phase_seconds_left": 280.0, "study_seconds_left": 5000.0, "last": None,
        **more,
    }  # fmt: skip
    return StudyStatus(**given)


def text_of(found: StudyStatus, width: int, height: int | None = None) -> str:
    sink = SafeConsole(file=io.StringIO(), width=width, highlight=False, emoji=False)
    with sink.capture() as held:
        sink.print(status_block.render_status(found, width, 0.0, height))
    return held.get()


@pytest.mark.parametrize("width", [60, 120])
def test_block_fits_terminal(width: int) -> None:
    """The progress block fits its terminal."""
    text = text_of(make_status(), width)
    assert max(len(line) for line in text.splitlines()) <= width
    for said in ("12/40", "about 5 min left", "5 lanes", "LoRA (control)", "0.5000", "81.2 (3)"):
        assert said in text, text
    assert "12,346 tokens/s so far, each of 2 workers" in text
    assert "whole study: about 83 min left" in text
    assert "lanes take" not in text
    methods = tuple(
        dataclasses.replace(m, lanes_ratio=3.84, lanes_timed=16) for m in make_status(1).methods
    )
    said = "16 lanes take 3.8 times a single trial's step with LoRA"
    assert said in text_of(make_status(methods=methods), width)


def test_low_terminal_keeps_control_and_best() -> None:
    """A low terminal shows the control and the best method."""
    text = text_of(make_status(30), 60, 20)
    assert len(text.splitlines()) <= 20
    assert "LoRA (control)" in text
    assert "more methods" in text
    assert "and 26 more groups" in text


@pytest.mark.parametrize("hostile", ["\x1b]0;x\x07", "\x1b[2J", "[red]x[/]", "hf_abcdefghijklmnop"])
def test_untrusted_titles_are_text(hostile: str) -> None:
    """Untrusted titles are shown as text."""
    row = MethodStatus("m", hostile, False, 1, 2, 0.5, 3, None, 0, None, 0, None)
    work = RunningJob("search", "m", hostile, 2, 0, 3, (), 1.0)
    phase = PhaseProgress(hostile, 1, 2, 0, 1.0)
    text = text_of(make_status(works=(work,), phase=phase, methods=(row,)), 120)
    assert not CONTROLS.search(text.replace("\n", ""))
    assert "hf_abc" not in text
    if hostile.startswith("["):
        assert "[red]x[/]" in text


def test_listeners_of_three_words_still_serve(tmp_path: Path) -> None:
    """A library user's own object knows phase, advance and say alone."""

    class ThreeMethods:
        def phase(self, title: str, total: int, done: int) -> None: ...

        def advance(self, what: str) -> None: ...

        def say(self, text: str) -> None: ...

    listener: Any = ThreeMethods()
    log = LoggingProgress(tmp_path / LOG, listener)
    assert list(with_events(log, [WORK], [{"a": 1}])) == [{"a": 1}]
    log.phase("Search", 2, 0)
    log.on_start(WORK)
    log.on_end(WORK)


def lines_of(monkeypatch: pytest.MonkeyPatch, folder: Path | None, quiet: float = 60.0) -> str:
    monkeypatch.setattr("bakeoff.cli.display.progress.QUIET_SECONDS", quiet)
    file = io.StringIO()
    console = SafeConsole(file=file, highlight=False, emoji=False, width=80)
    with LiveProgress(console, folder) as live:
        live.phase("Search", 6, 3)
        live.on_start(WORK)
        time.sleep(0.3)
        for trial in GROUP:
            live.advance(trial.id)
        live.on_end(WORK)
        live.phase("Base model", 1, 0)
        live.advance("base")
    return file.getvalue()


def test_piped_progress_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Piped progress is one line per group."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = lines_of(monkeypatch, None)
    assert re.sub(r"\d+ s", "_", text).splitlines() == [
        "Search: 6, 3 done before", "  Search 6/6 OFT, 3 trials to step 100 (_)",
        "Base model: 1", "  Base model 1/1 base (_)",
    ]  # fmt: skip
    assert "\x1b[?25l" not in text, "no cursor is hidden in a file"


def test_piped_progress_reports_quiet_work(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Piped progress says what is running when nothing has finished for a while."""
    text = lines_of(monkeypatch, study, quiet=0.15)
    said = [line for line in text.splitlines() if "running: OFT, 3 lanes, steps 0 to 100" in line]
    assert 1 <= len(said) <= 2
    assert "2,000 tokens/s so far" in said[0]
    assert "LoRA (control) 0.5000" in said[0]


SCRIPT = """
import time
from pathlib import Path
from bakeoff.cli.display.progress import LiveProgress
from bakeoff.cli.display.output import err
from bakeoff.study.monitoring.progress import Job, LoggingProgress
from bakeoff.study.storage import lock
WORK = {work!r}
folder = Path({folder!r})
with lock.hold_lock(folder), LiveProgress(err, folder) as live:
    log = LoggingProgress(folder / "log.jsonl", live)
    log.phase("Search", 6, 3)
    log.on_start(WORK)
    time.sleep(1.0)
    log.say("something happened")
    for trial in WORK.trials:
        log.advance(trial)
    log.on_end(WORK)
    log.phase("Final", 1, 0)
    time.sleep(0.3)
    log.close()
print("the verdict")
"""


def in_terminal(command: list[str], width: int, **environment: str) -> str:
    """Run a command in a terminal of its own and return what it wrote there."""
    child, parent = pty.fork()
    if child == 0:  # pragma: no cover
        os.execvpe(command[0], command, {**os.environ, "TERM": "xterm-256color", **environment})
    fcntl.ioctl(parent, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    written = b""
    while True:
        try:
            got = os.read(parent, 65536)
        except OSError:
            break
        if not got:
            break
        written += got
    os.close(parent)
    assert os.waitpid(child, 0)[1] == 0, written.decode(errors="replace")
    return written.decode("utf-8", errors="replace")


def command_of(folder: Path) -> list[str]:
    begin(folder)
    text = SCRIPT.format(work=WORK, folder=str(folder))
    return [sys.executable, "-c", text]


@pytest.mark.parametrize("width", [60, 120])
def test_terminal_block_is_redrawn(width: int, tmp_path: Path) -> None:
    """A terminal gets a block that is redrawn in place."""
    written = in_terminal(command_of(tmp_path), width, NO_COLOR="")
    assert "\x1b[1A" in written, "nothing was drawn over"
    assert "\x1b[?25h" in written, "the cursor is back"
    frames = re.split(r"\x1b\[2K", re.sub(r"\x1b\[[0-9;]*m", "", written))
    assert 2 <= sum("OFT, 3 lanes" in f for f in frames) <= 12, "at most four times a second"
    for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", written).splitlines():
        assert len(line) <= width, line
    for said in ("LoRA (control)", "something happened", "Search: 6 of 6", "the verdict"):
        assert said in written, said


@pytest.mark.parametrize("plainly", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_dumb_terminal_gets_lines(plainly: dict[str, str], tmp_path: Path) -> None:
    """A terminal without cursor control gets lines."""
    written = in_terminal(command_of(tmp_path), 60, **{"NO_COLOR": "", **plainly})
    assert "\x1b[1A" not in written
    assert "\x1b[?25l" not in written
    assert "  Search 6/6 OFT, 3 trials to step 100" in written


def test_file_output_without_control_characters(tmp_path: Path) -> None:
    """Output to a file has no control characters."""
    done = subprocess.run(command_of(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout == "the verdict\n"
    assert not CONTROLS.search(done.stderr)


def status(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bakeoff", "status", str(folder), *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_status_from_another_terminal(study: Path) -> None:
    before = {p.name: p.read_bytes() for p in study.iterdir() if p.suffix in (".db", ".json")}
    found = json.loads(status("--json", folder=study).stdout)
    assert found["state"] == "running"
    assert (found["holder"]["pid"], found["holder"]["alive"]) == (os.getpid(), True)
    assert found["works"][0]["lanes"] == 3
    assert {"phase": "search", "method": "oft", "trials": 3, "missing": 3} in found["rows"]
    assert found["methods"][0]["validation"] == 0.5
    assert found["last"]["event"] == "phase"
    assert datetime.datetime.fromisoformat(found["holder"]["since"]).tzinfo is not None
    text = status(folder=study).stdout
    assert f"running, process {os.getpid()} on " in text
    for said in ("3 of 6 planned trials", "OFT, 3 lanes, steps 0 to 100", "cannot run", "Search"):
        assert said in text, text
    assert not CONTROLS.search(text)
    assert before == {name: (study / name).read_bytes() for name in before}, "status wrote"


def test_status_waits_for_no_writer(study: Path) -> None:
    with Writer(study / "study.db") as store, store._engine.begin():
        began = time.monotonic()
        assert read_status(study, mine=True).done == 3
        assert time.monotonic() - began < 2


def test_status_watch_ends_with_run(tmp_path: Path) -> None:
    """`bakeoff status --watch` ends when no process runs the study."""
    begin(tmp_path)
    with lock.hold_lock(tmp_path):
        log = go_on(tmp_path)
        watching = subprocess.Popen(
            [sys.executable, "-m", "bakeoff", "status", str(tmp_path), "--watch"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert watching.stdout is not None
        first = watching.stdout.readline()
        assert ": running" in first
        assert watching.poll() is None
        log.close()
    rest = watching.communicate(timeout=30)[0]
    assert watching.returncode == 0
    assert ": stopped" in rest


def test_status_of_new_study(tmp_path: Path) -> None:
    """A study that has just started has a status."""
    assert "no-study" in status(folder=tmp_path).stderr
    with lock.hold_lock(tmp_path):
        log = LoggingProgress(tmp_path / LOG, Progress())
        log.phase("Timing", 4, 0)
        done = status(folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Timing" in done.stdout
    assert "0/4" in done.stdout

"""The verdict of a study of replicates in a terminal, and its rounds in ``bakeoff status``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from helpers.records import hits, make_result, make_trial
from helpers.report_fixture import report
from helpers.report_rounds import rounds_report, running_report

from bakeoff.cli.display import status_block, verdict
from bakeoff.cli.display.output import SafeConsole
from bakeoff.core.results import Status
from bakeoff.study.monitoring.status import DONE, STOPPED, StudyStatus, read_status
from bakeoff.study.storage.database import Writer

METRIC = {"name": "accuracy", "better": "higher", "unit": "fraction", "low": 0.0, "high": 1.0}


def shown(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, width: int = 80) -> str:
    sink = SafeConsole(file=io.StringIO(), width=width, highlight=False, emoji=False)
    for name in ("bakeoff.cli.display.verdict.out", "bakeoff.cli.display.output.out"):
        monkeypatch.setattr(name, sink)
    monkeypatch.setattr("bakeoff.cli.display.verdict.err", sink)
    with sink.capture() as held:
        verdict.show({"base": None, **made}, Path("runs/x"))
    return held.get()


def test_terminal_leads_with_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer, how sure it is, the table, what limits the rest, then the evidence."""
    text = " ".join(shown(rounds_report(), monkeypatch).split())
    places = [
        text.index(said)
        for said in (
            "Use OFT: it is better than LoRA by 3.1 points",
            "at most 5 in 100 such studies",
            "LoRA was tuned well",
            "method accuracy % interval)",
            "Full fine-tuning: not settled; items, not seeds, limit this: 1,160 test items",
            "Looks: 3 of 3; 1.9 of the 4.5 % error spent",
            "480 test items, 225 steps per trial",
        )
    ]
    assert places == sorted(places)


def test_first_screen_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer and table are within the first 24 lines of a terminal of 80 columns."""
    lines = shown(rounds_report(), monkeypatch).splitlines()
    assert max(map(len, lines[:24])) <= 80
    table = "\n".join(lines[:24])
    for title in ("LoRA", "OFT", "VeRA", "Head only"):
        assert title in table


def test_wide_terminal_counts_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "replicates" in shown(rounds_report(), monkeypatch, 200)
    assert "replicates" not in shown(report(), monkeypatch, 200)


def test_look_without_interval_shows_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    made = running_report()
    made["methods"][1]["difference"] |= {"low": None, "high": None, "p_adjusted": None}
    text = shown(made, monkeypatch)
    assert "+3.1  inconclusive" in text
    assert "None" not in text


def write_rounds(folder: Path, verdicts: dict[str, str | None], looks: int = 1) -> StudyStatus:
    """Write a study of replicates of which the looks are taken; return its status."""
    folder.mkdir(parents=True, exist_ok=True)
    with Writer(folder / "study.db") as store:
        store.set_all(
            {
                "about": {
                    "methods": ["lora", *verdicts],
                    "titles": {"lora": "LoRA", "oft": "OFT", "ia3": "IA3"},
                    "metric": METRIC,
                },
                "spec": {"name": "by hand", "engine": {"workers": 1}, "budget": {}},
                "rounds": {"mode": "rounds", "contenders": list(verdicts), "looks": [3, 5],
                           "seeds": [1, 2, 3, 4, 5], "margin": 0.01},
            }
        )  # fmt: skip
        for method in ("lora", *verdicts):
            trials = [make_trial(method, rate, 1, "replicate") for rate in (1e-4, 1e-3)]
            store.add_trials(trials)
            store.save(make_result(trials[0], status=Status.STOPPED, reason="race"))
            store.save(make_result(trials[1], test=hits(30, 40)))
        for number in range(1, looks + 1):
            numbers = {m: {"verdict": v} for m, v in verdicts.items()}
            store.save_look("planned", number, {"contenders": numbers})
    return read_status(folder)


def text_of(found: StudyStatus) -> str:
    sink = SafeConsole(file=io.StringIO(), width=100, highlight=False, emoji=False)
    with sink.capture() as held:
        sink.print(status_block.render_status(found, 100))
    return held.get()


def test_status_shows_rounds(tmp_path: Path) -> None:
    """The status has the round, the open contenders and the verdicts that were given."""
    found = write_rounds(tmp_path, {"oft": None, "ia3": "worse"})
    assert found.state == STOPPED
    assert (found.methods[0].test, found.methods[0].n_seeds) == (0.75, 1)
    text = text_of(found)
    assert "round 2 of at most 2 (looks at 3, 5 replicates); open: OFT" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "worse" in rows["IA3"]
    assert "open" in rows["OFT"]
    assert "open" not in rows["LoRA"]


@pytest.mark.parametrize(
    ("verdicts", "looks"),
    [({"oft": "better", "ia3": "worse"}, 1), ({"oft": None, "ia3": None}, 2)],
    ids=["all settled", "last look"],
)
def test_rounds_end(verdicts: dict[str, str | None], looks: int, tmp_path: Path) -> None:
    found = write_rounds(tmp_path, verdicts, looks)
    assert found.state == DONE
    assert f"{looks} of 2 looks" in text_of(found)

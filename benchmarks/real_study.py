"""What ``null.py`` and ``race_real.py`` share: a real study run by the library, and on what."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from bakeoff import api
from bakeoff.core.errors import BakeoffError
from bakeoff.core.record import StudyRecord
from bakeoff.study.config import StudySpec, parse_spec
from bakeoff.study.setup.provenance import git_state

DEMO = Path(str(files("bakeoff.study.config") / "templates/demo.toml"))


class Spoken:
    """Says on stderr which phase of which study runs, and what is worth a line."""

    def __init__(self, name: str) -> None:
        self._name = name

    def phase(self, title: str, total: int, done: int) -> None:
        """Name a phase."""
        self.say(f"{title}: {done} of {total} there")

    def advance(self, what: str) -> None:
        """Ignore it."""

    def say(self, text: str) -> None:
        """Print a line."""
        now = datetime.datetime.now(datetime.UTC)
        print(f"{now:%H:%M:%S} {self._name}: {text}", file=sys.stderr, flush=True)


def run_study(spec: StudySpec, source: Path, out: Path) -> tuple[StudyRecord, dict[str, Any]]:
    """Run a study or go on with it; return its record and its report."""
    report = api.run(spec, source, out, Spoken(out.name))
    return api.read_record(out), report


def changed(values: dict[str, Any], part: str, **wishes: Any) -> dict[str, Any]:
    """Return a study's values with those wishes for a part that are not None."""
    given = {k: v for k, v in wishes.items() if v is not None}
    return {**values, part: {**values.get(part, {}), **given}}


def checked(values: dict[str, Any], steps: int | None, workers: int | None) -> StudySpec:
    """Return the study of these values, with other steps or workers where they are given."""
    values = changed(values, "budget", steps=steps)
    return parse_spec(changed(values, "engine", workers=workers))


def about(benchmark: str, spec: StudySpec, record: StudyRecord, load: float) -> dict[str, Any]:
    """Return how, on what and when it was measured; ``load`` is the machine's before the start."""
    known = record.provenance
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": {
            **{key: known[key] for key in ("hardware", "device", "precision", "threads")},
            "cores": os.cpu_count(),
            "workers": spec.engine.workers,
            "load_before": load,
        },
        "versions": known["versions"],
        "git": git_state(Path(__file__).parent),
        "study": {
            "base": record.base,
            "n_items": record.n_items,
            "metric": record.metric.name,
            "margin": record.margin,
            "budget": spec.model_dump(mode="json")["budget"],
        },
    }


def where(found: dict[str, Any]) -> str:
    """Return one line on machine, versions and date."""
    machine, versions = found["machine"], found["versions"]
    named = ", ".join(f"{n} {versions[n]}" for n in ("torch", "transformers", "peft", "bakeoff"))
    return (
        f"{machine['hardware']}, {machine['cores']} cores, {machine['workers']} workers of "
        f"{machine['threads']} threads, {machine['precision']}, load {machine['load_before']:.1f} "
        f"before; {named}; {found['date']}"
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def told(
    given: argparse.Namespace,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    code: Callable[[dict[str, Any]], int],
) -> int:
    """Measure, write ``--out``, print the table; return the exit code."""
    try:
        found = measure(given)
    except BakeoffError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return code(found)

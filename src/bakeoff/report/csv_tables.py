"""The figures behind every table and chart as CSV, for spreadsheets and scripts.

Numbers are raw, in the units of ``docs/report-json.md``; missing values are empty cells. Untrusted
text never becomes a spreadsheet formula.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from bakeoff.report.sanitize import clean

Cells = dict[str, Any]
Report = dict[str, Any]

_FORMULA = "=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}" + (
    "\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
LONG = ("examples",)
"""Sheets that repeat texts of the page and are therefore not embedded in it."""


def tables(report: Report) -> dict[str, str]:
    """Return the numbers of every figure: sheet name -> CSV text with a header line.

    Sheets without rows are left out.
    """
    report = clean(report)
    sheets = {name: list(rows(report)) for name, rows in _SHEETS.items()}
    return {name: _csv(rows) for name, rows in sheets.items() if rows}


def csv_cell(value: Any) -> str:
    """Return a cell's text; a leading apostrophe stops a spreadsheet from evaluating formulas."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if text[:1] and text[0] in _FORMULA and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def _csv(rows: list[Cells]) -> str:
    columns = dict.fromkeys(key for row in rows for key in row)
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([csv_cell(c) for c in columns])
    writer.writerows([csv_cell(row.get(c)) for c in columns] for row in rows)
    return file.getvalue()


def _methods(report: Report) -> list[Cells]:
    return report.get("methods") or []


def _identity(method: Cells) -> Cells:
    return {"method": method.get("method"), "title": method.get("title")}


def _prefixed(name: str, value: Any, keys: Iterable[str]) -> Cells:
    """Return values of an object under ``<name>_<key>``; all None without an object."""
    known = value if isinstance(value, Mapping) else {}
    return {f"{name}_{key}": known.get(key) for key in keys}


_INTERVAL = ("estimate", "low", "high")
_EVIDENCE = ("replicates", "look", "items_share", "floor", "items_needed", "seeds_needed", "reason",
             "exploratory")  # fmt: skip
"""Keys of a difference that say what it rests on, and what would settle it."""


def _method_rows(report: Report) -> Iterator[Cells]:
    study = report["study"]
    for m in _methods(report):
        yield {
            **_identity(m),
            **{key: m.get(key) for key in ("status", "verdict", "reason")},
            **_prefixed("score", m.get("score"), _INTERVAL),
            **_prefixed("difference", m.get("difference"), (*_INTERVAL, "p_adjusted")),
            **_prefixed("gain", m.get("gain"), _INTERVAL),
            "learnt": (m.get("learning") or {}).get("learnt"),
            **{
                k: v
                for name, value in (m.get("secondary") or {}).items()
                for k, v in _prefixed(name, value, _INTERVAL).items()
            },
            "n_test_items": study.get("n_test_items"),
            "n_seeds": m.get("n_seeds"),
            "setting": m.get("setting"),
            **(m.get("cost") or {}),
            **_prefixed("forgetting", m.get("forgetting"), _INTERVAL),
            "steps_to_control_loss": m.get("steps_to_control_loss"),
            "front_probability": m.get("front_probability"),
        }


def _differences(report: Report) -> Iterator[Cells]:
    for m in _methods(report):
        difference = m.get("difference") or {}
        yield {
            **_identity(m),
            **{key: m.get(key) for key in ("verdict", "status")},
            **{key: difference.get(key) for key in (*_INTERVAL, "p_adjusted")},
            "n_seeds": m.get("n_seeds"),
            "margin": report["study"].get("margin"),
            "reason": m.get("reason"),
            **_limits(report, difference),
        }


def _limits(report: Report, difference: Cells) -> Cells:
    """Return what a difference rests on; nothing for studies without replicates."""
    if not report.get("rounds"):
        return {}
    return {f"limit_{k}" if k == "reason" else k: difference.get(k) for k in _EVIDENCE}


def _looks(report: Report) -> Iterator[Cells]:
    for look in (report.get("rounds") or {}).get("looks") or []:
        about = {k: v for k, v in look.items() if k not in ("open", "contenders")}
        for method, values in (look.get("contenders") or {}).items():
            yield {**about, "method": method, **values}


def _replicates(report: Report) -> Iterator[Cells]:
    for m in _methods(report) if report.get("rounds") else ():
        for seed in m.get("seeds") or []:
            rate = (seed.get("setting") or {}).get("learning_rate")
            yield {**_identity(m), "learning_rate": rate, **seed}


def _probabilities(report: Report) -> Iterator[Cells]:
    for method, others in (report.get("better_probabilities") or {}).items():
        yield {"method": method, **{f"better_than_{name}": p for name, p in others.items()}}


def _pareto(report: Report) -> Iterator[Cells]:
    plots = report.get("pareto") or []
    joint = (report.get("front") or {}).get("probabilities") or {}
    if not plots and not joint:
        return
    for m in _methods(report):
        name, cost = m.get("method"), m.get("cost") or {}
        row = {**_identity(m), **_prefixed("score", m.get("score"), _INTERVAL)}
        for plot in plots:
            key = str(plot.get("cost"))
            value = cost.get(key, m.get(key))
            row[key] = value.get("estimate") if isinstance(value, dict) else value
            row[f"on_front_{key}"] = name in (plot.get("front") or ())
            row[f"probability_{key}"] = (plot.get("probabilities") or {}).get(name)
        yield {**row, "probability_all_axes": joint.get(name)}


def _fairness(report: Report) -> Iterator[Cells]:
    for m in _methods(report):
        engine = m.get("engine") or {}
        keys = ("n_settings", "n_settings_added", "n_seeds", "setting", "best_setting_on_edge",
                "n_trials_diverged", "n_trials_failed")  # fmt: skip
        yield {
            **_identity(m),
            **{key: m.get(key) for key in keys},
            **_agreement(report, m),
            "steps": report["study"].get("steps"),
            "lanes": engine.get("lanes"),
            "accelerators_on": " ".join(engine.get("on") or ()),
            "accelerators_off": " ".join(engine.get("off") or ()),
        }


def _agreement(report: Report, method: Cells) -> Cells:
    known = method.get("agreement")
    return _prefixed("agreement", known, ("chosen", "replicates")) if report.get("rounds") else {}


def _race(report: Report) -> Iterator[Cells]:
    for d in (report.get("race") or {}).get("decisions") or []:
        rest = {k: v for k, v in d.items() if k != "numbers"}
        yield {**rest, **{f"number_{k}": v for k, v in (d.get("numbers") or {}).items()}}


def _sensitivity(report: Report) -> Iterator[Cells]:
    for m in _methods(report):
        for s in m.get("settings") or []:
            rate = (s.get("setting") or {}).get("learning_rate")
            yield {**_identity(m), "learning_rate": rate, **s}


def _curves(report: Report) -> Iterator[Cells]:
    for m in _methods(report):
        for curve in m.get("curves") or []:
            about = {k: curve.get(k) for k in ("trial_id", "phase", "seed", "learning_rate")}
            for point in curve.get("points") or []:
                yield {"method": m.get("method"), **about, **point}


def _items(report: Report) -> Iterator[Cells]:
    for contender in (report.get("items") or {}).get("methods") or []:
        row = {k: v for k, v in contender.items() if k not in ("wins", "losses", "outcomes")}
        keys = ("pairs", "both_right", "only_control", "only_contender", "both_wrong")
        yield {**row, **{k: (contender.get("outcomes") or {}).get(k) for k in keys}}


def _examples(report: Report) -> Iterator[Cells]:
    items = report.get("items") or {}
    item_texts = {a["item"]: a for a in items.get("asked") or []}
    for contender in items.get("methods") or []:
        for kind in ("wins", "losses"):
            for example in contender.get(kind) or []:
                texts = item_texts.get(example["item"], {})
                more = {key: texts.get(key) for key in ("prompt", "reference")}
                yield {"method": contender["method"], "kind": kind, **example, **more}


def _stability(report: Report) -> Iterator[Cells]:
    for m in _methods(report):
        known = m.get("stability") or {}
        if not any(known.values()):
            continue
        row = _identity(m)
        for name, value in known.items():
            row |= _prefixed(name, value, value) if isinstance(value, dict) else {name: value}
        yield row


def _costs(report: Report) -> Iterator[Cells]:
    for m in _methods(report):
        if any(v is not None for v in (m.get("cost") or {}).values()):
            yield {**_identity(m), **m["cost"]}


def _failures(report: Report) -> Iterator[Cells]:
    yield from report.get("failures") or []


def _retried(report: Report) -> Iterator[Cells]:
    yield from report.get("retried") or []


_SHEETS: dict[str, Callable[[Report], Iterator[Cells]]] = {
    "methods": _method_rows,
    "differences": _differences,
    "looks": _looks,
    "replicates": _replicates,
    "probabilities": _probabilities,
    "pareto": _pareto,
    "fairness": _fairness,
    "race": _race,
    "sensitivity": _sensitivity,
    "curves": _curves,
    "items": _items,
    "examples": _examples,
    "stability": _stability,
    "costs": _costs,
    "failures": _failures,
    "retried": _retried,
}

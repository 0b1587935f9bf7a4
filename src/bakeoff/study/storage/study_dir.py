"""The study folder: frozen data, the resolved study file, and what must not change on resume.

Called by ``api`` before any work: it cuts and freezes the splits, has the task check them, and
holds a study that is run again against the one that was frozen.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from bakeoff.core import files, trial_dir
from bakeoff.core.errors import EnvironmentProblem, PreflightError, UsageError, near_match
from bakeoff.core.safe_read import CONFIG_BYTES, Unreadable, read_json, within
from bakeoff.data import rows as data_rows
from bakeoff.data import sources
from bakeoff.data.checks import cells
from bakeoff.data.issues import Fault, Place, refusal
from bakeoff.metrics.describe import FOLDER as METRIC
from bakeoff.study.config import StudySpec, dump_spec, flatten
from bakeoff.study.storage import filesystem

DATABASE = "study.db"
STUDY_FILE = "study.toml"
CHAT_TEMPLATE = "chat_template.jinja"
FROZEN = {name: f"data/{name}.jsonl" for name in data_rows.SPLITS}
ORIGINS = "data/origins.json"
WHERE_IT_RUNS = (
    "executor", "workers", "threads", "gpus_per_segment", "segment_retries", "ray_address",
    "ray_files", "ray_unauthenticated", "patience",
)  # fmt: skip
"""Keys of `[engine]` that may change when a study goes on."""
GENERAL = "general"
"""The file beside the splits that holds general text."""


class Splits(NamedTuple):
    """The rows of each split, and the general text that forgetting is measured on."""

    rows: dict[str, list[data_rows.Row]]
    cut: dict[str, float]
    """The splits that were cut from one file -> the share of its rows that each was to get."""
    origins: dict[str, Any] = {}
    """Where each split came from, for the report."""
    general: Sequence[data_rows.Row] = ()

    def place(self, split: str, position: int) -> Place:
        """Return where a row stands in the user's file."""
        return data_rows.place_of(self.rows[split][position], split, position)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return {name: len(rows) for name, rows in self.rows.items()}


def make(folder: Path) -> None:
    """Create the folder and prove that it can be written, and that a database lives there.

    Nothing in it may lead elsewhere.

    Raises:
        EnvironmentProblem: ``folder-not-writable``, ``network-folder``.
        PreflightError: ``folder-link``.
    """
    filesystem.refuse_network(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        raise EnvironmentProblem(
            "folder-not-writable",
            f"The study folder {folder} cannot be written: "
            f"{getattr(error, 'strerror', None) or error}.",
            "another folder: `--out DIR`.",
        ) from error


def database_of(folder: Path) -> Path:
    """Return where a study's database lies.

    Raises:
        UsageError: ``no-study``.
    """
    path = folder / DATABASE
    if not path.is_file():
        raise UsageError(
            "no-study", f"There is no study in {folder}.", "`bakeoff run STUDY.toml` makes one."
        )
    return path


def refuse_links(folder: Path) -> None:
    """Refuse symbolic links inside a study folder: what is written there would land elsewhere.

    The folder itself may be one: whoever runs the study names it.

    Raises:
        PreflightError: ``folder-link``.
    """
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(here, name)
            if path.is_symlink():
                raise PreflightError(
                    "folder-link",
                    f"{path} is a symbolic link: bakeoff writes and removes files in a study "
                    "folder, and follows no link out of it.",
                    f"`rm {path}`, or another folder: `--out DIR` (which may be a link itself).",
                )


def read_splits(spec: StudySpec, source: Path) -> Splits:
    """Read the user's rows, files relative to ``source``; cut splits that are not given; sample.

    Raises:
        PreflightError: a file that cannot be read, a group column that cannot cut.
    """
    limits = spec.data.limit.model_dump()
    rng = random.Random(spec.seed)
    found = sources.find(_named(spec), source, spec.data.config, spec.data.revision)
    rows, cut = _all_rows(spec, {name: own.rows for name, own in found.items()})
    origins = {name: own.origin for name, own in found.items()}
    origins |= {name: {**origins["train"], "share": share} for name, share in cut.items()}
    if (source / ORIGINS).is_file() and _named(spec) == FROZEN:
        origins = _origins(source / ORIGINS)
    sampled = {name: data_rows.sample(rows[name], limits[name], rng) for name in data_rows.SPLITS}
    return Splits(sampled, cut, origins)


def _origins(path: Path) -> dict[str, Any]:
    """Read where frozen splits came from.

    Raises:
        PreflightError: ``origins-broken``.
    """
    try:
        found = read_json(path, CONFIG_BYTES)
    except Unreadable as error:
        raise PreflightError(
            "origins-broken", f"{path} cannot be read: {error}.", f"`rm {path}`."
        ) from error
    return found if isinstance(found, dict) else {}


def _named(spec: StudySpec) -> dict[str, str]:
    named = {name: getattr(spec.data, name) for name in data_rows.SPLITS}
    return {name: reference for name, reference in named.items() if reference is not None}


def _all_rows(
    spec: StudySpec, given: dict[str, list[data_rows.Row]]
) -> tuple[dict[str, list[data_rows.Row]], dict[str, float]]:
    missing = {
        name: getattr(spec.data, f"{name}_fraction")
        for name in ("validation", "test")
        if name not in given
    }
    given = _renamed(given, spec.data.rename)
    if not missing:
        return given, {}
    rows = given.pop("train")
    if spec.data.group is not None:
        _check_group(rows, spec.data.group)
    fractions = {"train": 1.0 - sum(missing.values()), **missing}
    return given | data_rows.split_rows(
        rows, spec.data.group, fractions, random.Random(spec.seed)
    ), fractions


def _renamed(
    given: dict[str, list[data_rows.Row]], names: Mapping[str, str]
) -> dict[str, list[data_rows.Row]]:
    """Give columns the names that ``data.rename`` says.

    Raises:
        PreflightError: ``rename-taken`` with the rows that would lose a column, ``column-missing``
            for a column that no split has, with the near match.
    """
    faults = []
    for old, new in names.items():
        same = {new, *(o for o, n in names.items() if n == new)}
        for split, rows in given.items():
            taken = [i for i, row in enumerate(rows) if len(same & row.keys()) > 1]
            what = f"data.rename makes one '{new}' of several columns"
            hint = "another name in `data.rename`."
            if taken:
                faults.append(
                    Fault.at("rename-taken", what, hint, split, taken, len(rows), fatal=True)
                )
        present = {str(name): None for rows in given.values() for row in rows for name in row}
        if old not in present:
            near = near_match(old, present)
            hint = f"did you mean '{near}'? " if near else ""
            faults.append(
                Fault(
                    "column-missing",
                    f"No row of any split has the column '{old}' (data.rename)",
                    f"{hint}The rows have: {', '.join(present)}.",
                    fatal=True,
                )
            )
    if (refused := refusal(faults, Splits(given, {}).place)) is not None:
        raise refused
    return {split: [data_rows.renamed(row, names) for row in rows] for split, rows in given.items()}


def _check_group(rows: Sequence[data_rows.Row], group: str) -> None:
    """Refuse a group column that some rows lack, or that cannot tell rows apart."""
    lacking = cells.missing("train", rows, "data.group", group)
    values = {str(row.get(group)) for row in rows}
    if not lacking and len(values) == 1:
        lacking = [
            Fault(
                "one-group",
                f"Every row has the same '{group}', '{min(values)}': no split can be cut",
                "another column in `data.group`, or none.",
                fatal=True,
            )
        ]
    whole = Splits({"train": list(rows)}, {})
    if (refused := refusal(lacking, whole.place)) is not None:
        raise refused


def drop_states(folder: Path, trial_id: str, but: int | None) -> None:
    """Remove the states of a trial that it goes on from at rungs, except that at step ``but``."""
    states = folder / "trials" / trial_id / trial_dir.STATES
    if not within(states, folder):  # a link that came after the study was opened
        return
    for file in states.glob("*"):
        if but is None or file.stem != str(but):
            file.unlink()
    for emptied in (states, states.parent):
        if emptied.is_dir() and not any(emptied.iterdir()):
            emptied.rmdir()


def freeze_data(folder: Path, splits: Splits) -> None:
    """Write the splits under ``data/``, with where they came from."""
    for name, rows in _frozen(splits).items():
        data_rows.write_split(folder / "data" / f"{name}.jsonl", rows)
    files.write_text(folder / ORIGINS, json.dumps(splits.origins, indent=1) + "\n")


def freeze_metric(folder: Path, name: str, code: bytes | None) -> None:
    """Copy the user's own metric into the study folder: workers and later runs use that copy."""
    if code is not None:
        path = folder / METRIC / name.rpartition(":")[0]
        path.parent.mkdir(exist_ok=True)
        files.write_bytes(path, code)


def digests(splits: Splits) -> dict[str, str]:
    """Return the sha256 sums that ``freeze_data`` would give, writing nothing."""
    return {name: data_rows.canonical_digest(rows) for name, rows in _frozen(splits).items()}


def _frozen(splits: Splits) -> dict[str, list[data_rows.Row]]:
    return {**splits.rows, **({GENERAL: list(splits.general)} if splits.general else {})}


def write_study_file(
    folder: Path, spec: StudySpec, own_metric: str | None, chat_template: str | None = None
) -> None:
    """Write the resolved study file: every default spelt out, paths inside the folder.

    ``own_metric`` names the user's own metric in its copy there, None where bakeoff's is used;
    ``chat_template`` is the text of the study's own.
    """
    value = dump_spec(spec)
    if chat_template is not None:
        files.write_text(folder / CHAT_TEMPLATE, chat_template)
        value["task"]["chat_template"] = CHAT_TEMPLATE
    if own_metric is not None:
        value["task"]["metric"] = f"{METRIC}/{own_metric}"
    value["data"] |= FROZEN
    for name in ("limit", "config", "revision"):
        value["data"].pop(name, None)
    if (folder / "data" / f"{GENERAL}.jsonl").is_file():
        value["forgetting"]["text"] = f"data/{GENERAL}.jsonl"
    value["data"].pop("rename", None)  # the frozen rows bear the new names
    header = "# Written by bakeoff: the resolved study. `bakeoff run` on it resumes the study.\n"
    files.write_text(folder / STUDY_FILE, header + tomli_w.dumps(value))


def comparable(spec: StudySpec) -> dict[str, Any]:
    """Return what of a spec must stay: all but paths (hashes are compared) and mere speed."""
    value = dump_spec(spec)
    of_reading = ("validation_fraction", "test_fraction", "group", "limit", "config", "revision")
    for name in (*data_rows.SPLITS, *of_reading):
        value["data"].pop(name, None)
    for name in WHERE_IT_RUNS:
        value["engine"].pop(name, None)
    for name in ("metric", "metric_options", "chat_template"):  # compared as they are resolved
        value["task"].pop(name, None)
    value["forgetting"].pop("text", None)
    value["data"].pop("rename", None)
    value["base"].pop("revision", None)  # the commit that it stands for is
    if not value["base"]["trust_remote_code"]:
        del value["base"]["trust_remote_code"]  # what studies from before it was there say
    value.pop("verdict", None)  # what is read out of the results changes none of them
    return value


def refuse_difference(frozen: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a study that is no longer the one that was frozen.

    Raises:
        PreflightError: ``study-differs``, with each differing key and both values.
    """
    lines = [f"  {line}" for line in differences(frozen, now)]
    if lines:
        raise PreflightError(
            "study-differs",
            "This study folder was begun under other conditions (before -> now):\n"
            + "\n".join(lines),
            "`--fork NEW` to begin the study as it is now in the folder NEW, which takes over the "
            "trials that stay the same; or the old conditions to go on.",
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each dotted key whose values differ: ``key: before -> now``."""
    one, two = flatten(before), flatten(now)
    return [
        f"{key}: {_shown(one.get(key))} -> {_shown(two.get(key))}"
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "(absent)"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

"""Read-only access to a study's database; it never blocks the writer and never creates a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from bakeoff.core.errors import UsageError, first_line
from bakeoff.core.results import Cost, TrialResult
from bakeoff.core.trial import Trial
from bakeoff.study.storage.database import errors, migrate, schema
from bakeoff.study.storage.database.handle import DatabaseHandle

PlannedTrial = tuple[Trial, TrialResult | None]
MANIFEST_VERSION = 2
"""First version of the database that stores the hashes of the trial folders' manifests."""


class TrialRow(NamedTuple):
    """Status of a planned trial, and the manifest hash of its folder."""

    status: str | None
    manifest_hash: str | None


class TrialCounts(NamedTuple):
    """Numbers of a method's trials: planned so far, and ended."""

    planned: int
    ended: int


class ItemResults(NamedTuple):
    """A trial's score and prediction of each item of a split, in the order of the split's file."""

    scores: list[float]
    predictions: list[str | None]


class TrialSummary(NamedTuple):
    """A planned trial with its latest result and the mean score of each split, without items.

    ``result`` holds no scores and no item losses. It is the final result (``ended``) or that of the
    last rung; None if there is none yet.
    """

    trial: Trial
    result: TrialResult | None
    ended: bool
    means: dict[str, float]


class Reader(DatabaseHandle):
    """Reader of what the writer has committed so far.

    Each call is one snapshot; inside ``snapshot`` all calls share one.
    """

    def __init__(self, path: Path) -> None:
        """Open a database of the current version or an older one.

        Raises:
            PreflightError: ``database-version``, ``database-foreign``.
            UsageError: ``no-study`` if it is still empty.
            EnvironmentProblem: ``database-damaged``, ``database-unusable``, ...
        """
        super().__init__(path, read_only=True)
        self._snapshot_connection: sa.Connection | None = None
        with self._reading() as connection:
            version = migrate.read_version(connection, path)
        if version is None:
            raise UsageError(
                "no-study",
                f"The study in {path.parent} has not started yet.",
                "`bakeoff run STUDY.toml` with the same study file starts it.",
            )
        self.version = version

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read everything in the with block from one snapshot, whatever is written meanwhile."""
        with self._engine.connect() as connection:
            self._snapshot_connection = connection
            try:
                yield
            finally:
                self._snapshot_connection = None

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """Yield the snapshot's connection, or a new one; report broken JSON as damage."""
        try:
            if self._snapshot_connection is not None:
                yield self._snapshot_connection
                return
            with self._engine.connect() as connection:
                yield connection
        except ValueError as error:  # a value that is not JSON
            raise errors.damaged_error(self._path, first_line(error)) from error

    def values(self, *keys: str) -> dict[str, Any]:
        """Return the study's values: all of them, or those of the given keys that exist."""
        query = sa.select(schema.study)
        with self._reading() as connection:
            rows = connection.execute(query.where(schema.study.c.key.in_(keys)) if keys else query)
            return {row.key: row.value for row in rows}

    def costs(self) -> dict[str, Cost]:
        """Return the costs measured so far, by method."""
        with self._reading() as connection:
            found = connection.execute(sa.select(schema.costs)).all()
        return {name: Cost.from_json(value) for name, value in found}

    def finished_ids(self) -> set[str]:
        """Return the ids of the trials that have ended, without reading results or scores."""
        table = schema.trials
        with self._reading() as connection:
            return set(connection.scalars(sa.select(table.c.id).where(table.c.status.is_not(None))))

    def trial_rows(self) -> dict[str, TrialRow]:
        """Return status and manifest hash of every planned trial, by trial id."""
        table = schema.trials
        query = sa.select(table.c.id, table.c.status, table.c.sealed)
        if self.version < MANIFEST_VERSION:
            query = sa.select(table.c.id, table.c.status, sa.null())
        with self._reading() as connection:
            return {i: TrialRow(*row) for i, *row in connection.execute(query)}

    def count_trials(self) -> dict[str, TrialCounts]:
        """Count the trials of each method, without reading results or scores."""
        table = schema.trials
        query = sa.select(
            table.c.method, sa.func.count().label("planned"), sa.func.count(table.c.status)
        ).group_by(table.c.method)
        with self._reading() as connection:
            return {name: TrialCounts(*counts) for name, *counts in connection.execute(query)}

    def planned_trials(self) -> list[Trial]:
        """Return every planned trial, in order, without reading results or scores."""
        query = sa.select(schema.trials.c.spec).order_by(schema.trials.c.position)
        with self._reading() as connection:
            return [Trial.from_json(spec) for spec in connection.scalars(query)]

    def last_rung(self) -> dict[str, int]:
        """Return the last rung of every unfinished trial that reached one, in steps by trial id."""
        if self._lacks_table(schema.rungs) or self._lacks_table(schema.decisions):
            return {}
        ended = sa.select(schema.trials.c.id).where(schema.trials.c.status.is_not(None))
        table = schema.rungs
        query = (
            sa.select(table.c.trial_id, sa.func.max(table.c.step).label("step"))
            .where(table.c.trial_id.not_in(ended))
            .group_by(table.c.trial_id)
        )
        with self._reading() as connection:
            return {row.trial_id: row.step for row in connection.execute(query)}

    def integrity_problems(self) -> list[str]:
        """Return the problems that SQLite finds in the whole file; empty if it is intact."""
        with self._reading() as connection:
            lines = connection.scalars(sa.text("PRAGMA integrity_check(20)")).all()
            orphans = connection.execute(sa.text("PRAGMA foreign_key_check")).all()
        problems = [str(line) for line in lines if line != "ok"]
        return problems + [f"a row of {table} has no trial" for table, *_ in orphans]

    def has_test_scores(self) -> bool:
        """Return whether the test set was evaluated: some trial has scores on it."""
        table = schema.scores
        with self._reading() as connection:
            query = sa.select(table.c.trial_id).where(table.c.split == "test").limit(1)
            return connection.scalar(query) is not None

    def results_at_rung(self, step: int) -> dict[str, TrialResult]:
        """Return the results at the rung ``step``, by trial id."""
        table = schema.rungs
        query = sa.select(table.c.trial_id, table.c.result).where(table.c.step == step)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return {trial_id: TrialResult.from_json(value) for trial_id, value in rows}

    def rung_results(self, trial_ids: Collection[str]) -> list[tuple[str, TrialResult]]:
        """Return the results of some trials at all of their rungs, with the trial ids."""
        table = schema.rungs
        query = sa.select(table.c.trial_id, table.c.result).where(table.c.trial_id.in_(trial_ids))
        with self._reading() as connection:
            rows = connection.execute(query.order_by(table.c.trial_id, table.c.step)).all()
        return [(trial_id, TrialResult.from_json(value)) for trial_id, value in rows]

    def last_pause(self, span: tuple[int, int]) -> dict[str, int]:
        """Return the last step at which each trial was paused inside ``span``, by trial id."""
        table = schema.rungs
        query = (
            sa.select(table.c.trial_id, sa.func.max(table.c.step))
            .where(table.c.step > span[0], table.c.step < span[1])
            .group_by(table.c.trial_id)
        )
        with self._reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def decisions(self) -> list[dict[str, Any]]:
        """Return the race's decisions in order of rungs; empty for studies without a race."""
        if self._lacks_table(schema.decisions):
            return []
        table = schema.decisions
        query = (
            sa.select(table.c.value)
            .join(schema.trials, schema.trials.c.id == table.c.trial_id)
            .order_by(table.c.step, schema.trials.c.position)
        )
        with self._reading() as connection:
            return list(connection.scalars(query))

    def looks(self, kind: str) -> list[dict[str, Any]]:
        """Return the looks of a kind (``planned``, ``again``) in order; empty for older studies."""
        if self._lacks_table(schema.looks):
            return []
        table = schema.looks
        query = sa.select(table.c.value).where(table.c.kind == kind).order_by(table.c.number)
        with self._reading() as connection:
            return list(connection.scalars(query))

    def trials(self) -> tuple[PlannedTrial, ...]:
        """Return every planned trial, in order, with its result and scores if it has ended."""
        table = schema.trials
        query = sa.select(table.c.spec, table.c.result).order_by(table.c.position)
        with self._reading() as connection:
            rows = connection.execute(query).all()
            splits = self._item_scores(connection)
        planned: list[PlannedTrial] = []
        for spec, result in rows:
            trial = Trial.from_json(spec)
            if result is None:
                planned.append((trial, None))
                continue
            filled = {
                name: {**value, **splits[trial.id, name]}
                for name, value in result["splits"].items()
            }
            planned.append((trial, TrialResult.from_json({**result, "splits": filled})))
        return tuple(planned)

    def item_results(self, trial_ids: Collection[str], split: str) -> dict[str, ItemResults]:
        """Return the scores and predictions of some trials on a split, by trial id."""
        mine = sa.and_(schema.scores.c.trial_id.in_(trial_ids), schema.scores.c.split == split)
        with self._reading() as connection:
            found = self._item_scores(connection, mine)
        return {
            trial: ItemResults(v["scores"], v["predictions"]) for (trial, _), v in found.items()
        }

    def summaries(self) -> tuple[TrialSummary, ...]:
        """Return a summary of every planned trial, in order, without reading single items."""
        table = schema.trials
        query = sa.select(table.c.spec, table.c.result).order_by(table.c.position)
        with self._reading() as connection:
            rows = connection.execute(query).all()
            means = self._mean_scores(connection)
        at_rung = self._last_rungs()
        found = []
        for spec, result in rows:
            trial = Trial.from_json(spec)
            last = at_rung.get(trial.id) if result is None else result
            if last is not None:
                last = {**last, "item_losses": ()}
                last["splits"] = {
                    split: {"scores": (), "predictions": (), "mean_loss": value["mean_loss"]}
                    for split, value in last["splits"].items()
                }
            given = None if last is None else TrialResult.from_json(last)
            found.append(TrialSummary(trial, given, result is not None, means.get(trial.id, {})))
        return tuple(found)

    @staticmethod
    def _mean_scores(connection: sa.Connection) -> dict[str, dict[str, float]]:
        table = schema.scores
        query = sa.select(table.c.trial_id, table.c.split, sa.func.avg(table.c.score)).group_by(
            table.c.trial_id, table.c.split
        )
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for trial_id, split, mean in connection.execute(query):
            if mean is not None:  # a score that is not a number is stored as null
                found[trial_id][split] = mean
        return found

    def _last_rungs(self) -> dict[str, dict[str, Any]]:
        """Return the last rung's result of every unfinished trial that reached one."""
        if self._lacks_table(schema.rungs):
            return {}
        ended = sa.select(schema.trials.c.id).where(schema.trials.c.status.is_not(None))
        table = schema.rungs
        query = (
            sa.select(table.c.trial_id, table.c.result)
            .where(table.c.trial_id.not_in(ended))
            .order_by(table.c.step)
        )
        with self._reading() as connection:
            return {row.trial_id: row.result for row in connection.execute(query)}

    def _lacks_table(self, table: sa.Table) -> bool:
        """Return whether this database is from before the table was added."""
        with self._reading() as connection:
            return not sa.inspect(connection).has_table(table.name)

    @staticmethod
    def _item_scores(
        connection: sa.Connection, which: sa.ColumnElement[bool] | None = None
    ) -> dict[tuple[str, str], dict[str, list[Any]]]:
        """Return the scores and predictions of (trial, split), of all or some, in item order."""
        found: dict[tuple[str, str], dict[str, list[Any]]] = defaultdict(
            lambda: {"scores": [], "predictions": []}
        )
        table = schema.scores
        query = sa.select(table).order_by(table.c.trial_id, table.c.split, table.c.item)
        if which is not None:
            query = query.where(which)
        for trial_id, split, _, score, prediction in connection.execute(query):
            entry = found[trial_id, split]
            entry["scores"].append(score)
            entry["predictions"].append(prediction)
        return found

"""Read-only readers of a study's database: they never block the writer and never create a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import sqlalchemy as sa

from bakeoff.core.errors import UsageError, first_line
from bakeoff.core.results import Cost, TrialResult
from bakeoff.core.trial import Trial
from bakeoff.study.storage.database import errors, migrate, schema

PlannedTrial = tuple[Trial, TrialResult | None]
MANIFEST_VERSION = 2
"""The first version of the database whose results know their folders' seals."""


class TrialRow(NamedTuple):
    """A planned trial as the database has it: its status, and the seal of its folder."""

    status: str | None
    sealed: str | None


class TrialCounts(NamedTuple):
    """How many trials of a method are planned so far, and how many of them have ended."""

    planned: int
    ended: int


class ItemResults(NamedTuple):
    """What a trial made of each item of a split, in the order of the split's file."""

    scores: list[float]
    predictions: list[str | None]


class TrialSummary(NamedTuple):
    """A planned trial without its items: what it gave last, and the mean score of each split.

    ``result`` holds no scores and no item losses. It is what the trial gave when it ended
    (``ended``) or at the last rung where it stands; None where it gave nothing yet.
    """

    trial: Trial
    result: TrialResult | None
    ended: bool
    means: dict[str, float]


class Reader:
    """Reads what the writer has committed so far.

    Each call is one snapshot; inside ``still`` all of them are the same one.
    """

    def __init__(self, path: Path) -> None:
        """Open the database of this version or an older one.

        Raises:
            PreflightError: ``database-version``, ``database-foreign``.
            UsageError: ``no-study`` where it holds nothing yet.
            EnvironmentProblem: ``database-damaged``, ``database-unusable``, ...
        """
        self._path = path
        self._engine = schema.create_engine(path, read_only=True)
        self._snapshot_connection: sa.Connection | None = None
        with self._reading() as connection:
            found = migrate.read_version(connection, path)
        if found is None:
            raise UsageError(
                "no-study",
                f"The study in {path.parent} has not begun yet.",
                "`bakeoff run` goes on with it.",
            )
        self.version = found

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read everything inside as it was at one moment, whatever is written meanwhile."""
        with self._engine.connect() as connection:
            self._snapshot_connection = connection
            try:
                yield
            finally:
                self._snapshot_connection = None

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            if self._snapshot_connection is not None:
                yield self._snapshot_connection
                return
            with self._engine.connect() as connection:
                yield connection
        except ValueError as error:  # a value that is no JSON any more
            raise errors.damaged_error(self._path, first_line(error)) from error

    def values(self, *keys: str) -> dict[str, Any]:
        """Return the study's values: all of them, or those of some keys that are there."""
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
        """Return the ids of the trials that have a result; reads no result and no score."""
        table = schema.trials
        with self._reading() as connection:
            return set(connection.scalars(sa.select(table.c.id).where(table.c.status.is_not(None))))

    def trial_rows(self) -> dict[str, TrialRow]:
        """Return what is known of every planned trial without its scores, by trial id."""
        table = schema.trials
        query = sa.select(table.c.id, table.c.status, table.c.sealed)
        if self.version < MANIFEST_VERSION:
            query = sa.select(table.c.id, table.c.status, sa.null())
        with self._reading() as connection:
            return {i: TrialRow(status, sealed) for i, status, sealed in connection.execute(query)}

    def count_trials(self) -> dict[str, TrialCounts]:
        """Count the trials of each method, reading no result and no score."""
        table = schema.trials
        query = sa.select(
            table.c.method, sa.func.count().label("planned"), sa.func.count(table.c.status)
        ).group_by(table.c.method)
        with self._reading() as connection:
            return {name: TrialCounts(*counts) for name, *counts in connection.execute(query)}

    def planned_trials(self) -> list[Trial]:
        """Return every planned trial, in order; reads no result and no score."""
        query = sa.select(schema.trials.c.spec).order_by(schema.trials.c.position)
        with self._reading() as connection:
            return [Trial.from_json(spec) for spec in connection.scalars(query)]

    def last_rung(self) -> dict[str, int]:
        """Return the last step of every trial that stands at a rung, and is to go on from there."""
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
        """Return what SQLite finds wrong in the whole file; none where it is sound."""
        with self._reading() as connection:
            said = connection.scalars(sa.text("PRAGMA integrity_check(20)")).all()
            lost = connection.execute(sa.text("PRAGMA foreign_key_check")).all()
        found = [str(line) for line in said if line != "ok"]
        return found + [f"a row of {table} whose trial is not there" for table, *_ in lost]

    def has_test_scores(self) -> bool:
        """Tell whether the test set was looked at: some trial has scores on it."""
        table = schema.scores
        with self._reading() as connection:
            query = sa.select(table.c.trial_id).where(table.c.split == "test").limit(1)
            return connection.scalar(query) is not None

    def results_at_rung(self, step: int) -> dict[str, TrialResult]:
        """Return what each trial had given at ``step``, by trial id."""
        table = schema.rungs
        query = sa.select(table.c.trial_id, table.c.result).where(table.c.step == step)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return {trial_id: TrialResult.from_json(value) for trial_id, value in rows}

    def last_pause(self, span: tuple[int, int]) -> dict[str, int]:
        """Return the last step, inside ``span``, at which each trial was stopped, by trial id."""
        table = schema.rungs
        query = (
            sa.select(table.c.trial_id, sa.func.max(table.c.step))
            .where(table.c.step > span[0], table.c.step < span[1])
            .group_by(table.c.trial_id)
        )
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def decisions(self) -> list[dict[str, Any]]:
        """Return the race's decisions, rung by rung; none where the study knows no race."""
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

    def trials(self) -> tuple[PlannedTrial, ...]:
        """Return every planned trial, in order, with its result and scores where it has them."""
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
        """Return every planned trial in short, in order: no item is read one by one."""
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
            if mean is not None:  # a score that is no number is kept as null
                found[trial_id][split] = mean
        return found

    def _last_rungs(self) -> dict[str, dict[str, Any]]:
        """Return what trials gave that stand at a rung and have not ended."""
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
        """Tell whether this database is older than a table."""
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

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

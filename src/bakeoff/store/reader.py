"""Read-only readers of a study's database: they never block the writer and never create a file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from bakeoff.results import Cost, TrialResult
from bakeoff.store import schema
from bakeoff.trial import Trial

Planned = tuple[Trial, TrialResult | None]


class Reader:
    """Reads what the writer has committed so far."""

    def __init__(self, path: Path) -> None:
        self._engine = schema.engine(path, read_only=True)

    def values(self) -> dict[str, Any]:
        """Return all values of the study."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(schema.study)).all()
        return {row.key: row.value for row in rows}

    def costs(self) -> dict[str, Cost]:
        """Return the costs measured so far, by method."""
        with self._engine.connect() as connection:
            found = connection.execute(sa.select(schema.costs)).all()
        return {name: Cost.from_json(value) for name, value in found}

    def finished(self) -> set[str]:
        """Return the ids of the trials that have a result; reads no result and no score."""
        table = schema.trials
        with self._engine.connect() as connection:
            return set(connection.scalars(sa.select(table.c.id).where(table.c.status.is_not(None))))

    def test_read(self) -> bool:
        """Tell whether the test set was looked at: some trial has scores on it."""
        table = schema.scores
        with self._engine.connect() as connection:
            query = sa.select(table.c.trial_id).where(table.c.split == "test").limit(1)
            return connection.scalar(query) is not None

    def rungs(self, step: int) -> dict[str, TrialResult]:
        """Return what each trial had given at ``step``, by trial id."""
        table = schema.rungs
        query = sa.select(table.c.trial_id, table.c.result).where(table.c.step == step)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return {trial_id: TrialResult.from_json(value) for trial_id, value in rows}

    def stands(self, span: tuple[int, int]) -> dict[str, int]:
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
        if not sa.inspect(self._engine).has_table(schema.decisions.name):
            return []
        table = schema.decisions
        query = (
            sa.select(table.c.value)
            .join(schema.trials, schema.trials.c.id == table.c.trial_id)
            .order_by(table.c.step, schema.trials.c.position)
        )
        with self._engine.connect() as connection:
            return list(connection.scalars(query))

    def trials(self) -> tuple[Planned, ...]:
        """Return every planned trial, in order, with its result and scores where it has them."""
        table = schema.trials
        query = sa.select(table.c.spec, table.c.result).order_by(table.c.position)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
            splits = self._scores(connection)
        planned: list[Planned] = []
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

    @staticmethod
    def _scores(connection: sa.Connection) -> dict[tuple[str, str], dict[str, list[Any]]]:
        """Return the scores and predictions of every (trial, split), in item order."""
        found: dict[tuple[str, str], dict[str, list[Any]]] = defaultdict(
            lambda: {"scores": [], "predictions": []}
        )
        table = schema.scores
        query = sa.select(table).order_by(table.c.trial_id, table.c.split, table.c.item)
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

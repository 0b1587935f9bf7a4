"""Write access to a study's database, for the one process that runs the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from bakeoff.core.clock import now_utc
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.core.trial import Trial
from bakeoff.core.trial_dir import TRIALS, manifest_hash
from bakeoff.study.storage.database import errors, migrate, schema
from bakeoff.study.storage.database.handle import DatabaseHandle


class Writer(DatabaseHandle):
    """Writer of plans and results; every call is one transaction, durable when it returns."""

    def __init__(self, path: Path) -> None:
        """Open the database; create it or migrate it to the current version if needed.

        Raises:
            EnvironmentProblem: ``database-damaged``, ``database-busy``, ``disk-full``, ...
            PreflightError: ``database-version``, ``database-foreign``.
        """
        super().__init__(path, read_only=False)
        try:
            self._open()
        except BaseException:
            self._engine.dispose()
            raise

    def _open(self) -> None:
        version = self._check_version()
        schema.set_journal_mode(self._engine, self._path)
        if version is None:
            with self._engine.begin() as connection:
                migrate.create_tables(connection)
        elif version < schema.VERSION:
            migrate.upgrade(self._engine, self._path, version)

    def _check_version(self) -> int | None:
        """Check that the file is an intact database of a study; return its version."""
        with self._engine.connect() as connection:
            version = migrate.read_version(connection, self._path)
            problem = connection.scalar(sa.text("PRAGMA quick_check(1)"))
        if problem != "ok":
            raise errors.damaged_error(self._path, str(problem))
        return version

    def set(self, key: str, value: Any) -> None:
        """Set one value of the study."""
        self.set_all({key: value})

    def set_all(self, values: Mapping[str, Any]) -> None:
        """Set values of the study in one transaction."""
        with self._engine.begin() as connection:
            _set_values(connection, values)

    def add_trials(self, trials: Sequence[Trial]) -> None:
        """Add trials that are not planned yet, in this order."""
        with self._engine.begin() as connection:
            last = connection.scalar(sa.select(sa.func.max(schema.trials.c.position)))
            start = 0 if last is None else last + 1
            for offset, trial in enumerate(trials):
                row = insert(schema.trials).values(
                    id=trial.id,
                    position=start + offset,
                    phase=trial.phase,
                    method=trial.method.name,
                    seed=trial.seed,
                    spec=trial.to_json(),
                )
                connection.execute(row.on_conflict_do_nothing())

    def save(self, result: TrialResult) -> None:
        """Write a trial's result, its scores per item and the manifest hash of its folder.

        Idempotent.
        """
        self.save_group([result])

    def save_group(
        self, results: Sequence[TrialResult], values: Mapping[str, Any] | None = None
    ) -> None:
        """Write the results of a group's trials, at a rung or final, in one transaction.

        ``values`` of the study are set in the same transaction.
        """
        with self._engine.begin() as connection:
            _set_values(connection, values or {})
            for result in results:
                is_paused = result.status is Status.STOPPED and result.reason is None
                if is_paused:
                    _write_rung(connection, result)
                else:
                    seal = manifest_hash(self._path.parent / TRIALS / result.trial_id)
                    _write_result(connection, result, seal)

    def delete_rungs(self, trial_id: str) -> None:
        """Delete a trial's results at rungs, so that it starts over. Decisions are kept."""
        with self._engine.begin() as connection:
            of_trial = schema.rungs.c.trial_id == trial_id
            connection.execute(sa.delete(schema.rungs).where(of_trial))

    def delete(
        self,
        *,
        results: Sequence[str] = (),
        plans: Sequence[str] = (),
        costs: Sequence[str] = (),
        values: Sequence[str] = (),
        log: Mapping[str, Any],
    ) -> None:
        """Delete what is to be done again and set ``log`` values, in one transaction.

        Trials in ``results`` stay planned and start over from step 0; those in ``plans`` are
        removed. ``costs`` are methods, ``values`` keys of the study.
        """
        columns, dependent = schema.trials.c, (schema.scores, schema.rungs, schema.decisions)
        with self._engine.begin() as connection:
            for table in dependent:
                selected = table.c.trial_id.in_([*results, *plans])
                connection.execute(sa.delete(table).where(selected))
            connection.execute(
                sa.update(schema.trials)
                .where(columns.id.in_(results))
                .values(status=None, result=None, finished_at=None, sealed=None)
            )
            connection.execute(sa.delete(schema.trials).where(columns.id.in_(plans)))
            connection.execute(sa.delete(schema.costs).where(schema.costs.c.method.in_(costs)))
            connection.execute(sa.delete(schema.study).where(schema.study.c.key.in_(values)))
            _set_values(connection, log)

    def save_decisions(self, decisions: Sequence[dict[str, Any]]) -> None:
        """Write the race's decisions at a rung in one transaction."""
        with self._engine.begin() as connection:
            for value in decisions:
                row = insert(schema.decisions).values(
                    trial_id=value["trial_id"], step=value["step"], value=value
                )
                connection.execute(row.on_conflict_do_nothing())

    def save_look(self, kind: str, number: int, value: Mapping[str, Any]) -> None:
        """Write a look; one that is there already stays as it is."""
        row = insert(schema.looks).values(kind=kind, number=number, at=now_utc(), value=dict(value))
        with self._engine.begin() as connection:
            connection.execute(row.on_conflict_do_nothing())

    def save_cost(self, cost: Cost) -> None:
        """Write a method's cost."""
        row = insert(schema.costs).values(method=cost.method, value=cost.to_json())
        with self._engine.begin() as connection:
            connection.execute(
                row.on_conflict_do_update(index_elements=["method"], set_={"value": cost.to_json()})
            )


def _set_values(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        row = insert(schema.study).values(key=key, value=value)
        connection.execute(row.on_conflict_do_update(index_elements=["key"], set_={"value": value}))


def _write_result(connection: sa.Connection, result: TrialResult, seal: str | None) -> None:
    value = result.to_json()
    # only the race needs them: they are in ``rungs``
    value["item_losses"] = value["initial_losses"] = ()
    value["splits"] = {
        s: {"mean_loss": v.mean_loss, "cut": v.cut} for s, v in result.splits.items()
    }
    rows = [
        {"trial_id": result.trial_id, "split": s, "item": i, "score": x, "prediction": p}
        for s, v in result.splits.items()
        for i, (x, p) in enumerate(zip(v.scores, v.predictions, strict=True))
    ]
    now = now_utc()
    connection.execute(sa.delete(schema.scores).where(schema.scores.c.trial_id == result.trial_id))
    if rows:
        connection.execute(sa.insert(schema.scores), rows)
    connection.execute(
        sa.update(schema.trials)
        .where(schema.trials.c.id == result.trial_id)
        .values(status=result.status.value, result=value, finished_at=now, sealed=seal)
    )


def _write_rung(connection: sa.Connection, result: TrialResult) -> None:
    """Write a trial's result at a rung."""
    row = insert(schema.rungs).values(
        trial_id=result.trial_id, step=result.step, result=result.to_json()
    )
    connection.execute(row.on_conflict_do_nothing())

"""The one writer of a study's database."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from bakeoff.errors import PreflightError
from bakeoff.results import Cost, Status, TrialResult
from bakeoff.store import schema
from bakeoff.trial import Trial


class Writer:
    """Writes plans and results; every call is one transaction, durable when it returns."""

    def __init__(self, path: Path) -> None:
        self._engine = schema.engine(path, read_only=False)
        schema.metadata.create_all(self._engine)
        self._check_version()

    def _check_version(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                insert(schema.study)
                .values(key="schema_version", value=schema.VERSION)
                .on_conflict_do_nothing()
            )
            found = connection.scalar(
                sa.select(schema.study.c.value).where(schema.study.c.key == "schema_version")
            )
        if found != schema.VERSION:
            raise PreflightError(
                "database-version",
                f"The study's database has version {found}, this bakeoff writes {schema.VERSION}.",
                "use the version of bakeoff that made it, or a new study folder.",
            )

    def set(self, key: str, value: Any) -> None:
        """Set one value of the study."""
        self.set_all({key: value})

    def set_all(self, values: Mapping[str, Any]) -> None:
        """Set values of the study, all or none."""
        with self._engine.begin() as connection:
            for key, value in values.items():
                row = insert(schema.study).values(key=key, value=value)
                connection.execute(
                    row.on_conflict_do_update(index_elements=["key"], set_={"value": value})
                )

    def plan(self, trials: Sequence[Trial]) -> None:
        """Add trials that are not there yet, in this order."""
        with self._engine.begin() as connection:
            start = connection.scalar(sa.select(sa.func.count()).select_from(schema.trials)) or 0
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

    def keep(self, result: TrialResult) -> None:
        """Write a trial's result and its per-item scores; writing it again changes nothing."""
        self.keep_group([result])

    def keep_group(self, results: Sequence[TrialResult]) -> None:
        """Write what a group's trials have given, all or none: at a rung, or as they ended."""
        with self._engine.begin() as connection:
            for result in results:
                stands = result.status is Status.STOPPED and result.reason is None
                (_keep_rung if stands else _keep)(connection, result)

    def decide(self, decisions: Sequence[dict[str, Any]]) -> None:
        """Write the race's decisions at a rung, all or none."""
        with self._engine.begin() as connection:
            for value in decisions:
                row = insert(schema.decisions).values(
                    trial_id=value["trial_id"], step=value["step"], value=value
                )
                connection.execute(row.on_conflict_do_nothing())

    def keep_cost(self, cost: Cost) -> None:
        """Write a method's cost."""
        row = insert(schema.costs).values(method=cost.method, value=cost.to_json())
        with self._engine.begin() as connection:
            connection.execute(
                row.on_conflict_do_update(index_elements=["method"], set_={"value": cost.to_json()})
            )

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()


def _keep(connection: sa.Connection, result: TrialResult) -> None:
    value = result.to_json()
    value["item_losses"] = ()  # the race's alone: they lie in ``rungs``
    value["splits"] = {s: {"mean_loss": v.mean_loss} for s, v in result.splits.items()}
    rows = [
        {"trial_id": result.trial_id, "split": s, "item": i, "score": x, "prediction": p}
        for s, v in result.splits.items()
        for i, (x, p) in enumerate(zip(v.scores, v.predictions, strict=True))
    ]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    connection.execute(sa.delete(schema.scores).where(schema.scores.c.trial_id == result.trial_id))
    if rows:
        connection.execute(sa.insert(schema.scores), rows)
    connection.execute(
        sa.update(schema.trials)
        .where(schema.trials.c.id == result.trial_id)
        .values(status=result.status.value, result=value, finished_at=now)
    )


def _keep_rung(connection: sa.Connection, result: TrialResult) -> None:
    """Write what a trial has given at the step where it stands."""
    row = insert(schema.rungs).values(
        trial_id=result.trial_id, step=result.step, result=result.to_json()
    )
    connection.execute(row.on_conflict_do_nothing())

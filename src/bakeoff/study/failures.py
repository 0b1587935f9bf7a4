"""Find the common cause of failures: a broken GPU, or the same error in several methods."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.results import Status, TrialResult
from bakeoff.core.trial import Trial

FinishedTrial = tuple[Trial, TrialResult]

SAME_FAILURE_LIMIT = 3
"""The study is paused after this many methods failed with the same error in a row."""

GPU_LOSS_LIMIT = 2
"""A GPU is disabled after this many methods crashed on it."""


class Quarantine:
    """Count of the methods that crashed on each GPU since the last success there.

    One method may crash every GPU by a fault in its kernels. A GPU on which two methods crashed,
    while work on another GPU succeeded, is broken itself.
    """

    def __init__(self) -> None:
        self._crashed: defaultdict[str, list[str]] = defaultdict(list)
        self._others_work: set[str] = set()
        """GPUs with crashes, after which work on another GPU succeeded."""

    def record_outcome(
        self, gpu: str | None, method: str, lost: bool, succeeded: bool
    ) -> tuple[str, ...]:
        """Record one outcome; return the methods that crashed if ``gpu`` is to be disabled.

        ``succeeded``: the work returned results, whatever their status. ``lost``: the worker lost
        its GPU.
        """
        if gpu is None:
            return ()
        if succeeded:
            self._crashed.pop(gpu, None)
            self._others_work.discard(gpu)
            self._others_work |= set(self._crashed)
            return ()
        if not lost:
            return ()
        if method not in self._crashed[gpu]:
            self._crashed[gpu].append(method)
        broken = len(self._crashed[gpu]) >= GPU_LOSS_LIMIT and gpu in self._others_work
        return tuple(self._crashed.pop(gpu)) if broken else ()


class CircuitBreaker:
    """A buffer that holds failures back until they prove to be the methods' own.

    The same error in several methods in a row is the machine's or the data's: the study is paused
    and no trial is marked as failed.
    """

    def __init__(self, methods: int) -> None:
        self.limit = max(2, min(SAME_FAILURE_LIMIT, methods))
        self.signature: str | None = None
        self.pending: list[FinishedTrial] = []
        self.quarantine = Quarantine()

    def record(self, group: Sequence[FinishedTrial]) -> list[FinishedTrial]:
        """Record the results of a group; return all results that may be written now.

        Raises:
            EnvironmentProblem: ``same-failure``.
        """
        signatures = {_signature(r) for _, r in group}
        signature = signatures.pop() if len(signatures) == 1 else None
        if signature is None:
            return [*self.flush(), *group]
        ready = self.flush() if signature != self.signature else []
        self.signature = signature
        self.pending += group
        failed = {t.method.name for t, _ in self.pending}
        if len(failed) >= self.limit:
            titles = ", ".join(dict.fromkeys(t.method.title for t, _ in self.pending))
            raise EnvironmentProblem(
                "same-failure",
                f"Several methods failed with the same error ({titles}): {group[0][1].reason}",
                "fix the cause and run the same command again: none of these trials counts as "
                'failed yet. `bakeoff doctor` checks the machine; executor = "inline" under '
                "[engine] shows where it fails.",
            )
        return ready

    def flush(self) -> list[FinishedTrial]:
        """Return the failures that were held back: they are the methods' own."""
        pending, self.pending, self.signature = self.pending, [], None
        return pending


def _signature(result: TrialResult) -> str | None:
    """Return a failure's first line without numbers and addresses; None if it did not fail."""
    if result.status is not Status.FAILED:
        return None
    first = (result.reason or "").split("\n")[0]
    return re.sub(r"0x[0-9a-f]+|\d+", "#", first)

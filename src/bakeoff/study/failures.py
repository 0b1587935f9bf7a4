"""Which GPU is not to be worked on any more: one that method after method loses.

Asked by ``rounds`` with each outcome. A method may lose every GPU it gets, by a fault of its own
kernels: that is the method's. A GPU that two methods have lost, none succeeding on it in between
while work went well on another, is broken itself.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.results import Status, TrialResult
from bakeoff.core.trial import Trial

FinishedTrial = tuple[Trial, TrialResult]

SAME_FAILURE_LIMIT = 3
"""Methods that fail alike, none succeeding in between, before the study is paused."""

GPU_LOSS_LIMIT = 2
"""Methods that lose a GPU before it is set aside."""


class Quarantine:
    """What has become of the work on each GPU since it last went well there."""

    def __init__(self) -> None:
        self._lost: defaultdict[str, list[str]] = defaultdict(list)
        self._elsewhere: set[str] = set()
        """GPUs that were lost, and meanwhile work on another one went well."""

    def heard(self, gpu: str | None, method: str, lost: bool, went_well: bool) -> tuple[str, ...]:
        """Return the methods that lost ``gpu``, once it is to be set aside; else nothing.

        ``went_well``: the work gave results, whatever their status.
        """
        if gpu is None:
            return ()
        if went_well:
            self._lost.pop(gpu, None)
            self._elsewhere.discard(gpu)
            self._elsewhere |= set(self._lost)
            return ()
        if not lost:
            return ()
        if method not in self._lost[gpu]:
            self._lost[gpu].append(method)
        broken = len(self._lost[gpu]) >= GPU_LOSS_LIMIT and gpu in self._elsewhere
        return tuple(self._lost.pop(gpu)) if broken else ()


class CircuitBreaker:
    """Holds failures back until it is clear that they are the methods' own.

    The same failure in one method after the other is the machine's or the data's: then the study
    pauses, and nothing is marked failed.
    """

    def __init__(self, methods: int) -> None:
        self.most = max(2, min(SAME_FAILURE_LIMIT, methods))
        self.signature: str | None = None
        self.held: list[FinishedTrial] = []
        self.gpus = Quarantine()

    def take(self, group: Sequence[FinishedTrial]) -> list[FinishedTrial]:
        """Return what may be written now that a group has ended.

        Raises:
            EnvironmentProblem: ``same-failure``.
        """
        signatures = {_signature(r) for _, r in group}
        same = signatures.pop() if len(signatures) == 1 else None
        if same is None:
            return [*self.flush(), *group]
        known = self.flush() if same != self.signature else []
        self.signature = same
        self.held += group
        failed = {t.method.name for t, _ in self.held}
        if len(failed) >= self.most:
            titles = ", ".join(dict.fromkeys(t.method.title for t, _ in self.held))
            raise EnvironmentProblem(
                "same-failure",
                f"One method after the other fails alike ({titles}): {group[0][1].reason}",
                "mend the cause and run the same command again: none of these trials counts as "
                'failed yet. `bakeoff doctor` checks the machine; executor = "inline" under '
                "[engine] shows where it fails.",
            )
        return known

    def flush(self) -> list[FinishedTrial]:
        """Return what was held back: the failures were the methods' own."""
        held, self.held, self.signature = self.held, [], None
        return held


def _signature(result: TrialResult) -> str | None:
    """Return what tells failures apart, numbers and addresses left out; None: no failure."""
    if result.status is not Status.FAILED:
        return None
    first = (result.reason or "").split("\n")[0]
    return re.sub(r"0x[0-9a-f]+|\d+", "#", first)

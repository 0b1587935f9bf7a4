"""Which GPU is not to be worked on any more: one that method after method loses.

Asked by ``rounds`` with each outcome. A method may lose every GPU it gets, by a fault of its own
kernels: that is the method's. A GPU that two methods have lost, none succeeding on it in between
while work went well on another, is broken itself.
"""

from __future__ import annotations

from collections import defaultdict

LOST = 2
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
        broken = len(self._lost[gpu]) >= LOST and gpu in self._elsewhere
        return tuple(self._lost.pop(gpu)) if broken else ()

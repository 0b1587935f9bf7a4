"""The prompts of one lane: those that wait for a slot, those in slots, and their completions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence


class LaneQueue:
    """A lane's prompts by index, in the order in which they get slots.

    ``end_tokens`` end a completion, and so does its length ``limit``.
    """

    def __init__(self, order: Sequence[int], end_tokens: Iterable[int], limit: int) -> None:
        self.waiting = deque(order)
        self.in_slot: list[int | None] = []
        """Index of the prompt in each slot of the lane; None: the slot is free."""
        self.completions: list[list[int]] = [[] for _ in order]
        self._end_tokens = frozenset(end_tokens)
        self._limit = limit

    @property
    def busy(self) -> list[int]:
        """The slots in use."""
        return [i for i, prompt in enumerate(self.in_slot) if prompt is not None]

    @property
    def free(self) -> list[int]:
        """The free slots."""
        return [i for i, prompt in enumerate(self.in_slot) if prompt is None]

    @property
    def active(self) -> list[int]:
        """The prompts in slots."""
        return [prompt for prompt in self.in_slot if prompt is not None]

    @property
    def ended(self) -> bool:
        """Whether every completion has ended."""
        return not self.waiting and not self.active

    def room(self, slots: int) -> int:
        """Return how many waiting prompts get a slot if the lane has this many."""
        return min(len(self.waiting), slots - len(self.active))

    def resize(self, slots: int) -> list[tuple[int, int]]:
        """Set the number of slots; return the old and the new slot of every prompt in one.

        Only prompts beyond the new number change their slot.
        """
        busy = self.busy
        free = (i for i in range(slots) if i >= len(self.in_slot) or self.in_slot[i] is None)
        moves = [(old, old if old < slots else next(free)) for old in busy]
        before, self.in_slot = self.in_slot, [None] * slots
        for old, new in moves:
            self.in_slot[new] = before[old]
        return moves

    def take(self, count: int) -> list[int]:
        """Remove and return the next prompts that wait."""
        return [self.waiting.popleft() for _ in range(count)]

    def record(self, slot: int, tokens: Sequence[int]) -> None:
        """Add tokens to the completion in a slot, up to its end; there, free the slot."""
        prompt = self.in_slot[slot]
        assert prompt is not None
        completion = self.completions[prompt]
        if len(completion) + len(tokens) < self._limit and self._end_tokens.isdisjoint(tokens):
            completion.extend(tokens)  # in a large batch the loop would take as long as a step
            return
        for token in tokens:
            completion.append(token)
            if token in self._end_tokens or len(completion) == self._limit:
                self.in_slot[slot] = None
                return

"""The trained tensors of K trials, stacked: one fp32 row a lane makes a step's bookkeeping flat.

``[K, P]`` values and gradients; each trained tensor is a view ``[K, *shape]`` into them. Clipping,
divergence and AdamW then work on rows, whatever the method is. Used by ``lanes``; plain tensors,
no module is known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class GroupSpan(NamedTuple):
    """Where a group of parameters lies in a row."""

    start: int
    stop: int


class ParameterStack:
    """Values and gradients of the trained tensors of K lanes.

    ``groups`` lists the tensors' names by group; ``states`` maps name -> initial value, one a lane.
    """

    def __init__(
        self,
        states: Sequence[Mapping[str, Tensor]],
        groups: Sequence[Sequence[str]],
        device: torch.device | str,
    ) -> None:
        self.names = [n for group in groups for n in group]
        self.shapes = {n: states[0][n].shape for n in self.names}
        self._starts: dict[str, int] = {}
        self.spans: list[GroupSpan] = []
        at = 0
        for group in groups:
            begin = at
            for name in group:
                self._starts[name] = at
                at += self.shapes[name].numel()
            self.spans.append(GroupSpan(begin, at))
        self.values = torch.empty(len(states), at, device=device)
        self.gradients = torch.zeros_like(self.values)
        for row, state in enumerate(states):
            for name in self.names:
                self.tensor(name)[row].copy_(state[name])

    def __len__(self) -> int:
        return len(self.values)

    def tensor(self, name: str) -> Tensor:
        """Return the values of one tensor in all lanes, ``[K, *shape]``."""
        return self._view(self.values, name)

    def gradient(self, name: str) -> Tensor:
        """Return the gradients of one tensor in all lanes, ``[K, *shape]``."""
        return self._view(self.gradients, name)

    def leaves(self, first: int, width: int) -> dict[str, nn.Parameter]:
        """Return the leaves of ``width`` lanes, ``[width, *shape]``; of one lane, ``[*shape]``.

        They lie in the stack's own memory, their gradients too.
        """
        at = first if width == 1 else slice(first, first + width)
        return {
            n: _make_leaf(self.tensor(n)[at], self._view(self.gradients, n)[at]) for n in self.names
        }

    def rows(self, lane: int) -> list[nn.Parameter]:
        """Return one lane's row cut into its groups, for an optimizer."""
        return [
            _make_leaf(self.values[lane, s.start : s.stop], self.gradients[lane, s.start : s.stop])
            for s in self.spans
        ]

    def _view(self, whole: Tensor, name: str) -> Tensor:
        start, shape = self._starts[name], self.shapes[name]
        return whole[:, start : start + shape.numel()].view(len(whole), *shape)


def _make_leaf(value: Tensor, gradient: Tensor) -> nn.Parameter:
    leaf = nn.Parameter(value)
    leaf.grad = gradient
    return leaf


def all_equal(tensors: Iterable[Tensor]) -> bool:
    """Say whether all tensors are equal in shape, dtype and bits."""
    first, *others = tensors
    return all(
        o.shape == first.shape and o.dtype == first.dtype and torch.equal(o, first) for o in others
    )

"""The trained tensors of K trials, stacked into one fp32 row per lane.

Each trained tensor is a view ``[K, *shape]`` of the stack, so clipping, divergence checks and AdamW
work on rows, whatever the method.

Tensor axes: K = lanes, P = trained parameters of a lane. Values and gradients are ``[K, P]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class GroupSpan(NamedTuple):
    """Range of a parameter group in a row."""

    start: int
    stop: int


class ParameterStack:
    """Values and gradients of the trained tensors of K lanes.

    ``groups`` lists the tensors' names by group; ``states`` has each lane's initial value by name.
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
        """Return the values of a tensor in all lanes, ``[K, *shape]``."""
        return self.view(self.values, name)

    def gradient(self, name: str) -> Tensor:
        """Return the gradients of a tensor in all lanes, ``[K, *shape]``."""
        return self.view(self.gradients, name)

    def leaves(self, first: int, width: int) -> dict[str, nn.Parameter]:
        """Return the leaves of ``width`` lanes, ``[width, *shape]``; of one lane, ``[*shape]``.

        They and their gradients are views of the stack's memory.
        """
        at = first if width == 1 else slice(first, first + width)
        return {
            n: _make_leaf(self.tensor(n)[at], self.view(self.gradients, n)[at]) for n in self.names
        }

    def rows(self, lane: int) -> list[nn.Parameter]:
        """Return one lane's row, one parameter per group, for an optimizer."""
        return [
            _make_leaf(self.values[lane, s.start : s.stop], self.gradients[lane, s.start : s.stop])
            for s in self.spans
        ]

    def view(self, whole: Tensor, name: str) -> Tensor:
        """Return a tensor's part of rows ``[n, P]``, ``[n, *shape]``."""
        start, shape = self._starts[name], self.shapes[name]
        return whole[:, start : start + shape.numel()].view(len(whole), *shape)


def _make_leaf(value: Tensor, gradient: Tensor) -> nn.Parameter:
    """Return a parameter on the memory of ``value`` that accumulates into ``gradient``."""
    leaf = nn.Parameter(value)
    leaf.grad = gradient
    return leaf


def all_equal(tensors: Iterable[Tensor]) -> bool:
    """Return whether all tensors are equal in shape, dtype and values."""
    first, *others = tensors
    return all(
        o.shape == first.shape and o.dtype == first.dtype and torch.equal(o, first) for o in others
    )

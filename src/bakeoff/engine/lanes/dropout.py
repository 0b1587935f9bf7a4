"""Dropout whose draws belong to the trial: the same alone, in any lane and beside any neighbour.

PyTorch draws from one stream for the whole batch, so a lane's mask would depend on who else rides.
Here a mask is a multiply-add hash of a fixed noise vector with a key of (trial seed, step, call):
pure elementwise arithmetic, on a CPU several times faster than drawing (Carter and Wegman 1979,
universal classes of hash functions). Installed by ``lanes`` on every ``nn.Dropout`` of a model and
used by ``attention`` for dropout on its weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_STREAM = 0xD0


class StepPart(NamedTuple):
    """What of a trial's step a pass holds, where it does not hold it all.

    ``row`` examples and ``token`` tokens of the step lie before it; it has ``rows`` examples itself
    and, packed, ``slots`` places for tokens (0: not packed). ``last`` ends the trial's step.
    """

    row: int
    token: int
    rows: int
    slots: int
    last: bool


class LaneRandom:
    """The keys of one step: ``[calls, K, 2]`` int32, one pair a dropout call and lane."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.seeds = tuple(seeds)
        self.device = device
        self._noise = torch.empty(0, dtype=torch.int32, device=device)
        self._keys = torch.empty(0, len(seeds), 2, dtype=torch.int32, device=device)
        self._calls = 0
        self._step = 0
        self._rows = slice(None)
        self.part: StepPart | None = None
        """What of the lane's step the pass at hand holds; None: all of it."""
        self.captured = False
        """A CUDA graph is on: nothing may be seeded while it is captured."""

    def begin_step(self, step: int) -> None:
        """Draw the keys of ``step``; the next call gets its first."""
        self._step = step
        if len(self._keys):
            self._keys.copy_(self._draw(len(self._keys)))
        self._calls = 0

    def select(self, first: int, width: int) -> None:
        """Start the step's calls again, for ``width`` lanes from ``first``."""
        self._calls = 0
        self._rows = slice(first, first + width)
        self.part = None

    @contextlib.contextmanager
    def replay_from(self, calls: int) -> Iterator[None]:
        """Give what is inside the keys that it got before, from the call with this number on."""
        before, self._calls = self._calls, calls
        try:
            yield
        finally:
            self._calls = before

    @property
    def calls(self) -> int:
        """How many keys the pass has taken."""
        return self._calls

    def seed_global_generator(self, lane: int) -> None:
        """Tie PyTorch's own stream to a trial and step, for what draws from it all the same.

        That is a method's own noise, and dropout that is no ``nn.Dropout``; lanes that ride
        together share it. So a trial that goes on from a state draws what it would have drawn.
        """
        if not self.captured:
            torch.manual_seed((self.seeds[lane] * 1_000_003 + self._step) % 2**63)

    def next_key(self) -> Tensor:
        """Return the key of the next call for the lanes picked, ``[width, 2]``."""
        if self._calls >= len(self._keys):
            self._keys = self._draw(max(16, 2 * len(self._keys))).to(self.device)
        key = self._keys[self._calls, self._rows]
        self._calls += 1
        return key

    def noise(self, n: int, start: int = 0) -> Tensor:
        """Return ``n`` fixed random int32 from ``start`` on, the same on every device."""
        if start + n > len(self._noise):
            draws = np.random.default_rng(_STREAM).integers(0, 2**32, start + n, dtype=np.uint32)
            self._noise = torch.from_numpy(draws.view(np.int32)).to(self.device)
        return self._noise[start : start + n]

    def noise_for(self, shape: Sequence[int], n: int) -> Tensor:
        """Return the noise of a tensor of this shape, ``n`` elements a lane.

        Where a step is cut into passes, an example gets the noise that it would get in one.
        """
        cut = self.part
        if cut is None:
            return self.noise(n)
        if cut.slots and len(shape) > 1 and shape[1] == cut.slots:
            return self.noise(n, cut.token * (n // cut.slots))
        if shape[0] == cut.rows:
            return self.noise(n, cut.row * (n // cut.rows))
        return self.noise(n)  # it counts neither tokens nor examples

    def _draw(self, calls: int) -> Tensor:
        keys = np.empty((calls, len(self.seeds), 2), dtype=np.uint32)
        for lane, seed in enumerate(self.seeds):
            rng = np.random.default_rng([seed, _STREAM, self._step])
            keys[:, lane] = rng.integers(0, 2**32, (calls, 2), dtype=np.uint32)
        keys[..., 0] |= 1
        return torch.from_numpy(keys.view(np.int32))


def keep_mask(n: int, p: float, key: Tensor, noise: Tensor) -> Tensor:
    """Return ``[K, n]`` booleans, False with probability ``p``; ``key`` is ``[K, 2]``."""
    threshold = int(-(2**31) + (1 - p) * 2**32)
    return (noise[:n] * key[:, :1] + key[:, 1:]) < threshold


def apply_dropout(x: Tensor, p: float, key: Tensor, noise: Tensor) -> Tensor:
    """Drop elements of ``x``, whose leading dimension is the lanes of ``key`` times anything."""
    mask = keep_mask(x.numel() // len(key), p, key, noise)
    return x * mask.view(x.shape).to(x.dtype).mul_(1 / (1 - p))


class KeyedDropout:
    """Replaces the forward of one ``nn.Dropout``."""

    def __init__(self, module: nn.Dropout, draws: LaneRandom) -> None:
        self.module = module
        self.random = draws
        self.lane_key: Tensor | None = None
        """The key ``[2]`` of the lane at hand while a unit runs this module under vmap."""

    def __call__(self, x: Tensor) -> Tensor:
        """Drop, or pass on what is not in training."""
        p = self.module.p
        if not self.module.training or p == 0:
            return x
        key = self.random.next_key() if self.lane_key is None else self.lane_key[None]
        return apply_dropout(x, p, key, self.random.noise_for(x.shape, x.numel() // len(key)))

    def bits(self, shape: Sequence[int]) -> Tensor:
        """Return uniform int32 of this shape (alone, or inside a unit: one lane's)."""
        key = self.random.next_key()[0] if self.lane_key is None else self.lane_key
        return (self.random.noise_for(shape, math.prod(shape)) * key[0] + key[1]).view(*shape)


def install_keyed_dropout(model: nn.Module, draws: LaneRandom) -> list[KeyedDropout]:
    """Let every ``nn.Dropout`` of ``model`` draw by key; return what was installed."""
    installed = []
    for module in model.modules():
        if type(module) is nn.Dropout and module.p > 0:
            keyed = KeyedDropout(module, draws)
            patched: Any = module
            patched.forward = keyed
            installed.append(keyed)
    for module in model.modules():
        # a layer that draws for itself, after its dropouts: shims give it what it draws by
        if hasattr(module, "keyed"):
            drawing: Any = module
            drawing.keyed = KeyedDropout(drawing, draws)
            installed.append(drawing.keyed)
    return installed

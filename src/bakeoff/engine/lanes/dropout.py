"""Dropout whose random draws belong to the trial, independent of the lanes it is batched with.

PyTorch draws from one stream for the whole batch, so a lane's mask would depend on the other lanes.
Here a mask is a multiply-add hash of a fixed noise vector with a key of (trial seed, step, call):
elementwise arithmetic only, on a CPU several times faster than drawing (Carter and Wegman 1979,
universal classes of hash functions).

Tensor axes: K = lanes, n = elements of one lane.
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
"""Separates these random streams from others with the same seed."""


class StepPart(NamedTuple):
    """Which part of a trial's step a pass holds, if the step is divided into several passes.

    ``row`` examples and ``token`` tokens of the step come before it; it has ``rows`` examples
    itself and, if packed, ``slots`` token slots (0: not packed). ``last`` marks the step's end.
    """

    row: int
    token: int
    rows: int
    slots: int
    last: bool


class LaneRandom:
    """The random keys of one step: ``[calls, K, 2]`` int32, a pair per dropout call and lane."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.seeds = tuple(seeds)
        self.device = device
        self._noise = torch.empty(0, dtype=torch.int32, device=device)
        self._outgrown: list[Tensor] = []
        """Former noise, which CUDA graphs that were captured with it still read."""
        self._keys = torch.empty(0, len(seeds), 2, dtype=torch.int32, device=device)
        self._calls = 0
        self.users = 0
        """Number of modules that draw by these keys."""
        self._step = 0
        self._rows = slice(None)
        self.part: StepPart | None = None
        """The part of the lane's step in the current pass; None: the whole step."""
        self.captured = False
        """A CUDA graph is in use: seeding is not allowed while it is captured."""

    def begin_step(self, step: int) -> None:
        """Draw the keys of ``step`` and return to its first call."""
        self._step = step
        if len(self._keys):
            self._keys.copy_(self._draw(len(self._keys)))
        self._calls = 0

    def select(self, first: int, width: int) -> None:
        """Return to the first call of the step, for ``width`` lanes from ``first``."""
        self._calls = 0
        self._rows = slice(first, first + width)
        self.part = None

    @contextlib.contextmanager
    def replay_from(self, calls: int) -> Iterator[None]:
        """Repeat in the block the keys that it had before, from call number ``calls``."""
        before, self._calls = self._calls, calls
        try:
            yield
        finally:
            self._calls = before

    @property
    def calls(self) -> int:
        """Number of keys used in this pass so far."""
        return self._calls

    def return_to(self, calls: int) -> None:
        """Return to call number ``calls``: a pass that is run again has the same keys."""
        self._calls = calls

    def seed_global_generator(self, lane: int) -> None:
        """Seed PyTorch's own generator by trial and step, for code that still draws from it.

        That is a method's own noise, and dropout that is not an ``nn.Dropout``; lanes batched
        together share it. A trial resumed from a checkpoint then draws what it would have drawn.
        """
        if not self.captured:
            torch.manual_seed((self.seeds[lane] * 1_000_003 + self._step) % 2**63)

    def next_key(self) -> Tensor:
        """Return the key of the next call for the selected lanes, ``[width, 2]``."""
        if self._calls >= len(self._keys):
            self._keys = self._draw(max(16, 2 * len(self._keys))).to(self.device)
        key = self._keys[self._calls, self._rows]
        self._calls += 1
        return key

    def noise(self, n: int, start: int = 0) -> Tensor:
        """Return ``n`` fixed random int32 from offset ``start``, the same on every device."""
        if start + n > len(self._noise):
            if self.captured:
                self._outgrown.append(self._noise)
            draws = np.random.default_rng(_STREAM).integers(0, 2**32, start + n, dtype=np.uint32)
            self._noise = torch.from_numpy(draws.view(np.int32)).to(self.device)
        return self._noise[start : start + n]

    def noise_for(self, shape: Sequence[int], n: int) -> Tensor:
        """Return the noise of a tensor of this shape, ``n`` elements per lane.

        If a step is divided into passes, an example gets the noise of the undivided step.
        """
        part = self.part
        if part is None:
            return self.noise(n)
        if part.slots and len(shape) > 1 and shape[1] == part.slots:
            return self.noise(n, part.token * (n // part.slots))
        if shape[0] == part.rows:
            return self.noise(n, part.row * (n // part.rows))
        return self.noise(n)  # neither tokens nor examples along these axes

    def _draw(self, calls: int) -> Tensor:
        """Return the keys of the step's first calls; their number does not change the keys."""
        keys = np.empty((calls, len(self.seeds), 2), dtype=np.uint32)
        for lane, seed in enumerate(self.seeds):
            rng = np.random.default_rng([seed, _STREAM, self._step])
            keys[:, lane] = rng.integers(0, 2**32, (calls, 2), dtype=np.uint32)
        keys[..., 0] |= 1  # an odd multiplier permutes the integers modulo 2^32
        return torch.from_numpy(keys.view(np.int32))


def keep_mask(n: int, p: float, key: Tensor, noise: Tensor) -> Tensor:
    """Return ``[K, n]`` booleans, False with probability ``p``; ``key`` is ``[K, 2]``."""
    # int32 products wrap around, so the hash is uniform over all int32
    threshold = int(-(2**31) + (1 - p) * 2**32)
    return (noise[:n] * key[:, :1] + key[:, 1:]) < threshold


def standard_normal(bits: Tensor) -> Tensor:
    """Return standard normals from uniform int32."""
    uniform = ((bits >> 8).float() + 0.5) * 2.0**-23
    return torch.erfinv(uniform) * math.sqrt(2)


def apply_dropout(x: Tensor, p: float, key: Tensor, noise: Tensor) -> Tensor:
    """Drop elements of ``x``, whose leading axis is a multiple of the lanes of ``key``."""
    mask = keep_mask(x.numel() // len(key), p, key, noise)
    return x * mask.view(x.shape).to(x.dtype).mul_(1 / (1 - p))


class KeyedDropout:
    """Replacement for the forward of one ``nn.Dropout``, which draws by key."""

    def __init__(self, module: nn.Dropout, random: LaneRandom) -> None:
        self.module = module
        self.random = random
        self.lane_key: Tensor | None = None
        """The key ``[2]`` of the current lane while this module runs under vmap; else None."""
        self.keys: Tensor | None = None
        """The keys of the last call, ``[K, 2]``."""

    def next_keys(self) -> Tensor:
        """Return the keys of this module's next call, a pair for each selected lane, ``[K, 2]``."""
        self.keys = self.random.next_key()
        return self.keys

    def __call__(self, x: Tensor) -> Tensor:
        """Apply dropout in training; otherwise return the input."""
        p = self.module.p
        if not self.module.training or p == 0:
            return x
        key = self.next_keys() if self.lane_key is None else self.lane_key[None]
        return apply_dropout(x, p, key, self.random.noise_for(x.shape, x.numel() // len(key)))

    def bits(self, shape: Sequence[int]) -> Tensor:
        """Return uniform int32 of this shape, for a single lane (or the current one under vmap)."""
        key = self.next_keys()[0] if self.lane_key is None else self.lane_key
        return (self.random.noise_for(shape, math.prod(shape)) * key[0] + key[1]).view(*shape)

    @contextlib.contextmanager
    def repeated_call(self, key: Tensor) -> Iterator[None]:
        """Draw in the block by this key ``[2]``, of a lane's last call."""
        before, self.lane_key = self.lane_key, key
        try:
            yield
        finally:
            self.lane_key = before

    def normals(self, shape: Sequence[int]) -> Tensor:
        """Return standard normals of this shape, from ``bits``."""
        return standard_normal(self.bits(shape))


def install_keyed_dropout(model: nn.Module, random: LaneRandom) -> list[KeyedDropout]:
    """Make every ``nn.Dropout`` of a model draw by key; return the replacements."""
    installed = []
    for module in model.modules():
        if type(module) is nn.Dropout and module.p > 0:
            keyed = KeyedDropout(module, random)
            patched: Any = module
            patched.forward = keyed
            installed.append(keyed)
    for module in model.modules():
        # a patched layer that draws its own noise; after its dropouts, so that calls keep order
        if hasattr(module, "keyed"):
            drawing: Any = module
            drawing.keyed = KeyedDropout(drawing, random)
            installed.append(drawing.keyed)
    random.users += len(installed)
    return installed

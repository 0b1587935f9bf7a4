"""Lanes: K trials of one method share one frozen base and one step.

The adapter is injected once; the K initialisations of its trained tensors are stacked to
``[K, ...]`` (``stack``). Together, the model's batch holds all lanes one after another,
``[K * B, ...]``, and only the modules that own lane tensors know (``units``). Alone, one lane's
tensors lie in the model, which is then the plain PEFT model of that trial: so are trials saved,
and so does a method train that cannot ride.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bakeoff.engine import quantization
from bakeoff.engine.lanes import dropout
from bakeoff.engine.lanes.parameter_stack import ParameterStack, all_equal
from bakeoff.engine.lanes.vmapped_modules import (
    FoldedModule,
    TensorSlot,
    VmappedModule,
    find_frozen_parts,
    find_lane_modules,
)

MAX_PER_SEED_ELEMENTS = 1 << 20
"""Frozen tensors up to this many elements may differ by seed (masks, indices); larger ones not."""


Precondition = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Maps one lane's tensors and gradients by name to the gradients that it changes."""


class FrozenPartsDiffer(Exception):
    """The trials' frozen parts differ by seed: they cannot stand on one base."""


class RowsMixed(RuntimeError):
    """Something in the base computes over all rows: a lane would depend on its neighbours."""


class InitialTensors(NamedTuple):
    """What a seed decides: trained tensors, small frozen ones, a checksum of each large one."""

    trained: dict[str, Tensor]
    small: dict[str, Tensor]
    sums: dict[str, int]

    @classmethod
    def of(cls, model: nn.Module, checksums: bool) -> InitialTensors:
        """Copy a freshly attached model's start; without ``checksums`` the trained tensors only."""
        start = cls({}, {}, {})
        for name, tensor in named_tensors(model).items():
            if tensor.requires_grad:
                start.trained[name] = tensor.detach().clone()
            elif (
                checksums
                and tensor.numel() <= MAX_PER_SEED_ELEMENTS
                and not quantization.is_packed(tensor)
            ):
                start.small[name] = tensor.detach().clone()
            elif checksums:
                start.sums[name] = _checksum(tensor)
        return start


def _checksum(tensor: Tensor) -> int:
    found = 0
    for part in quantization.plain_parts(tensor):
        raw = part.cpu().contiguous().view(torch.uint8).numpy()
        found = zlib.crc32(raw.data, found)
    return found


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of a model by name, each tensor once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


class _LaneRange(NamedTuple):
    """The lanes that ride together: ``width`` of them from ``first``."""

    first: int
    width: int


class Lanes:
    """K trials on one model: one ``Start`` a lane, the trained tensors' names by optimizer group.

    The model comes with its shims on.

    Raises:
        NotShared: a large frozen tensor differs between the starts.
    """

    def __init__(
        self,
        model: nn.Module,
        starts: Sequence[InitialTensors],
        groups: Sequence[Sequence[str]],
        seeds: Sequence[int],
    ) -> None:
        self.model = model
        device = next(iter(model.parameters())).device
        self.stack = ParameterStack([s.trained for s in starts], groups, device)
        differing = [n for n in starts[0].sums if len({s.sums[n] for s in starts}) > 1]
        if differing:
            raise FrozenPartsDiffer(f"its frozen tensors differ by seed ({differing[0]})")
        self.per_seed = {
            n: torch.stack([s.small[n] for s in starts]).to(device)
            for n in starts[0].small
            if not all_equal(s.small[n] for s in starts)
        }
        everything = named_tensors(model)
        ours = {id(everything[n]): n for n in (*self.stack.names, *self.per_seed)}
        self._slots = _find_slots(model, ours)
        self.random = dropout.LaneRandom(seeds, device)
        self.dropouts = dropout.install_keyed_dropout(model, self.random)
        """The model's active dropouts."""
        self._mixing = quantization.mixes_rows(model)
        self.sees_padding = any(getattr(m, "sees_padding", False) for m in model.modules())
        """What an example computes depends on how far its batch is padded."""
        self._hooks = {n: everything[n]._backward_hooks or {} for n in self.stack.names}
        """What a method hung on its parameters' gradients: the leaves must carry it too."""
        self._units = [
            VmappedModule(module, local, self._drops_in(module))
            for module, local in find_lane_modules(model, ours)
        ]
        self._patches: list[VmappedModule | FoldedModule] = [*self._units]
        for unit in self._units:
            self._patches += [FoldedModule(m) for m in find_frozen_parts(unit.module, ours)]
        self._patched = False
        self._leaves: dict[_LaneRange, dict[str, nn.Parameter]] = {}
        self._shared: dict[str, Tensor] | None = None
        self._place_now = _LaneRange(0, 0)  # nobody yet
        self.run_single(0)

    def __len__(self) -> int:
        return len(self.stack)

    def run_lanes(self, first: int, width: int, rows: int) -> None:
        """Let ``width`` lanes from ``first`` ride together, each with ``rows`` of the batch.

        One lane rides as the plain model of its trial.

        Raises:
            Mixing: what a row gives would depend on other lanes' rows.
        """
        if width == 1:
            self.run_single(first)
            return
        if self._mixing:
            raise RowsMixed(quantization.MIXES_ROWS_REASON)
        if not self._patched:
            for patch in self._patches:
                patch.module.forward = patch
            self._patched = True
        for unit in self._units:
            unit.lanes, unit.rows_per_lane = width, rows
        self._place(_LaneRange(first, width))

    def run_single(self, lane: int) -> None:
        """Make the model the plain model of one lane."""
        if self._patched:
            for patch in self._patches:
                patch.module.__dict__.pop("forward", None)
            self._patched = False
        self._place(_LaneRange(lane, 1))

    def backward(self, total: Tensor) -> None:
        """Write the gradients of the lanes that ride into the stack."""
        leaves = self._leaves[self._place_now]
        if self._place_now.width == 1:
            torch.autograd.backward(total)
            return
        # not backward(): it would add to rows that lie apart, tensor by tensor, and warn of it
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        into, new = [], []
        for leaf, gradient in zip(leaves.values(), found, strict=True):
            if gradient is not None and leaf.grad is not None:
                into.append(leaf.grad)
                new.append(gradient)
        torch._foreach_copy_(into, new)

    def map_lanes(self, function: Callable[[nn.Module], Tensor | None]) -> Tensor | None:
        """Return ``function(model)`` of every lane that rides, ``[width]``, or None if that is."""
        shell = _FunctionOfModel(self.model, function)
        own = {f"model.{n}": t for n, t in self._values(self._place_now).items()}
        found: list[bool] = []

        def one(values: dict[str, Tensor]) -> Tensor:
            answer = functional_call(shell, values, ())
            found.append(answer is not None)
            return answer if answer is not None else torch.zeros(())

        out: Tensor = vmap(one)(own)
        return out if found[0] else None

    @torch.no_grad()
    def precondition(self, function: Precondition) -> None:
        """Let ``function`` bend each lane's gradients by its tensors' values, all lanes at once."""
        gradients = {n: self.stack.gradient(n) for n in self.stack.names}
        own = {n: self.stack.tensor(n) for n in self.stack.names}
        if self._shared is None:
            # a frozen tensor that differs by seed is a lane's own too; the others are the model's
            ours = {*own, *self.per_seed}
            self._shared = {n: t for n, t in named_tensors(self.model).items() if n not in ours}
        shared = self._shared

        def one(values: dict[str, Tensor], bent: dict[str, Tensor]) -> Mapping[str, Tensor]:
            return function({**shared, **values}, bent)

        for name, gradient in vmap(one)({**own, **self.per_seed}, gradients).items():
            gradients[name].copy_(gradient)

    def _values(self, riders: _LaneRange) -> dict[str, Tensor]:
        first, width = riders
        if riders not in self._leaves:
            self._leaves[riders] = self.stack.leaves(first, width)
            for name, leaf in self._leaves[riders].items():
                for hook in self._hooks[name].values():
                    act = hook if width == 1 else vmap(hook)
                    leaf.register_hook(act)  # type: ignore[no-untyped-call]
        seeded = {
            n: t[first] if width == 1 else t[first : first + width]
            for n, t in self.per_seed.items()
        }
        return {**self._leaves[riders], **seeded}

    def _place(self, riders: _LaneRange) -> None:
        """Give these lanes the next draws, and the model their tensors."""
        self.random.select(*riders)
        if self._place_now == riders:
            return
        for name, value in self._values(riders).items():
            for slot in self._slots[name]:
                slot.held[slot.key] = value
        self._place_now = riders

    def _drops_in(self, module: nn.Module) -> list[dropout.KeyedDropout]:
        inside = set(module.modules())
        return [d for d in self.dropouts if d.module in inside]


class _FunctionOfModel(nn.Module):
    def __init__(self, model: nn.Module, function: Callable[[nn.Module], Tensor | None]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self) -> Tensor | None:
        return self.function(self.model)


def _find_slots(model: nn.Module, ours: Mapping[int, str]) -> dict[str, list[TensorSlot]]:
    """Return every place of each tensor in the model: shared ones have several."""
    slots: dict[str, list[TensorSlot]] = {name: [] for name in ours.values()}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if id(tensor) in ours:
                    slots[ours[id(tensor)]].append(TensorSlot(held, key))
    return slots

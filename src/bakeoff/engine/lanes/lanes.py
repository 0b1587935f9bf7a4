"""Lanes: K trials of one method that share one frozen base and one training step.

The adapter is injected once, and the K initialisations of its trained tensors are stacked to
``[K, ...]``. When lanes are batched, the model's batch holds all of them one after another,
``[K * B, ...]``, and only the modules that own lane tensors treat them separately. A single lane's
tensors can also be put into the model, which is then the plain PEFT model of that trial: this is
how trials are saved, and how methods train that cannot be batched.

Tensor axes: K = lanes, B = rows of one lane.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bakeoff.engine import quantization
from bakeoff.engine.accelerators import Unsupported
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
"""Frozen tensors up to this size may differ by seed (masks, indices); larger ones may not."""


Precondition = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Maps one lane's tensors and gradients by name to the gradients that change."""


POSITION_TABLES = ("relative_attention_bias", "rel_embeddings", "relative_position")
"""Parts of the names of tensors that a base reads once for all rows (MPNet, T5, DeBERTa)."""


class FrozenPartsDiffer(Unsupported):
    """The trials' frozen tensors differ by seed, so they cannot share one base."""


class RowsMixed(Unsupported):
    """The base computes over all rows of a batch: a lane would depend on other lanes."""


class InitialTensors(NamedTuple):
    """Tensors that depend on the seed: trained, small frozen ones, checksums of large ones."""

    trained: dict[str, Tensor]
    small: dict[str, Tensor]
    sums: dict[str, int]

    @classmethod
    def from_model(
        cls, model: nn.Module, checksums: bool, base: Container[int] = ()
    ) -> InitialTensors:
        """Copy a newly attached model's tensors; without ``checksums`` only the trained ones.

        ``base`` has the addresses of the base's own tensors, which are the same for every seed.
        """
        start = cls({}, {}, {})
        for name, tensor in named_tensors(model).items():
            if tensor.requires_grad:
                start.trained[name] = tensor.detach().clone()
            elif not quantization.is_packed(tensor) and tensor.data_ptr() in base:
                continue
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
    """Return the CRC-32 of a tensor's bytes."""
    checksum = 0
    for part in quantization.plain_parts(tensor):
        raw = part.cpu().contiguous().view(torch.uint8).numpy()
        checksum = zlib.crc32(raw.data, checksum)
    return checksum


def write_tensors(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put copies of these tensors into a model by name, in every slot of a shared one."""
    everything = named_tensors(model)
    slots = _find_slots(model, {id(everything[name]): name for name in values})
    for name, value in values.items():
        held, device = everything[name], everything[name].device
        new = value.detach().to(device, copy=True)
        if isinstance(held, nn.Parameter):
            new = nn.Parameter(new, requires_grad=held.requires_grad)
            new._backward_hooks = held._backward_hooks  # a method's hooks on its gradient
        for slot in slots[name]:
            slot.owner[slot.key] = new


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of a model by name; a shared tensor once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def refuse_different_frozen(starts: Sequence[InitialTensors]) -> None:
    """Refuse starts whose large frozen tensors differ.

    Raises:
        FrozenPartsDiffer: they do.
    """
    for start in starts[1:]:
        differing = [n for n, _ in start.sums.items() ^ starts[0].sums.items()]
        differing += start.small.keys() ^ starts[0].small.keys()
        if differing:
            raise FrozenPartsDiffer(f"its frozen tensors differ by seed ({min(differing)})")


class _LaneRange(NamedTuple):
    """Consecutive lanes: ``width`` of them from ``first``."""

    first: int
    width: int


class Lanes:
    """K trials on one model, which has its PEFT patches installed.

    ``starts`` has the initial tensors of each lane, ``groups`` the names of the trained tensors by
    optimizer group.

    Raises:
        FrozenPartsDiffer: a large frozen tensor differs between the starts.
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
        refuse_different_frozen(starts)
        self.per_seed = {
            n: torch.stack([s.small[n] for s in starts]).to(device)
            for n in starts[0].small
            if not all_equal(s.small[n] for s in starts)
        }
        everything = named_tensors(model)
        lane_tensors = {id(everything[n]): n for n in (*self.stack.names, *self.per_seed)}
        self._slots = _find_slots(model, lane_tensors)
        self.random = dropout.LaneRandom(seeds, device)
        self.dropouts = dropout.install_keyed_dropout(model, self.random)
        """The model's active dropouts."""
        self._mixing = _mixing_reason(model, lane_tensors.values())
        self._hooks = {n: everything[n]._backward_hooks or {} for n in self.stack.names}
        """Hooks of the method on its parameters' gradients, to be registered on the leaves too."""
        self._units = [
            VmappedModule(module, local, self._dropouts_in(module))
            for module, local in find_lane_modules(model, lane_tensors)
        ]
        self._patches: list[VmappedModule | FoldedModule] = [*self._units]
        for unit in self._units:
            self._patches += [FoldedModule(m) for m in find_frozen_parts(unit.module, lane_tensors)]
        self.trains_output_layer = _includes_output_layer(self._units, model)
        """Whether each lane has its own output layer, or a part of it."""
        self._patched = False
        self._leaves: dict[_LaneRange, dict[str, nn.Parameter]] = {}
        self._shared: dict[str, Tensor] | None = None
        self._active = _LaneRange(0, 0)  # none yet
        self.run_single(0)

    def __len__(self) -> int:
        return len(self.stack)

    def run_lanes(self, first: int, width: int, rows: int) -> None:
        """Batch ``width`` lanes from ``first``, each with ``rows`` rows of the batch.

        A single lane runs as the plain model of its trial.

        Raises:
            RowsMixed: the result of a row would depend on other lanes' rows.
        """
        if width == 1:
            self.run_single(first)
            return
        if self._mixing is not None:
            raise RowsMixed(self._mixing)
        if not self._patched:
            for patch in self._patches:
                patch.module.forward = patch
            self._patched = True
        for unit in self._units:
            unit.lanes, unit.rows_per_lane = width, rows
        self._activate(_LaneRange(first, width))

    def run_single(self, lane: int) -> None:
        """Make the model the plain model of one lane."""
        if self._patched:
            for patch in self._patches:
                patch.module.__dict__.pop("forward", None)
            self._patched = False
        self._activate(_LaneRange(lane, 1))

    def backward(self, total: Tensor) -> None:
        """Write the gradients of the active lanes into the stack."""
        leaves = self._leaves[self._active]
        if self._active.width == 1:
            torch.autograd.backward(total)
            return
        # not backward(): it would accumulate into strided rows, tensor by tensor, with a warning
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        into, new = [], []
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            if gradient is not None and leaf.grad is not None:
                into.append(leaf.grad)
                new.append(gradient)
        torch._foreach_copy_(into, new)

    def map_lanes(self, function: Callable[[nn.Module], Tensor | None]) -> Tensor | None:
        """Return ``function(model)`` of each active lane, ``[width]``; None if it returns None."""
        shell = _FunctionOfModel(self.model, function)
        stacked = {f"model.{n}": t for n, t in self._values(self._active).items()}
        has_value: list[bool] = []

        def one(values: dict[str, Tensor]) -> Tensor:
            answer = functional_call(shell, values, ())
            has_value.append(answer is not None)
            return answer if answer is not None else torch.zeros(())  # vmap returns tensors only

        out: Tensor = vmap(one)(stacked)
        return out if has_value[0] else None

    @torch.no_grad()
    def precondition(self, function: Precondition) -> None:
        """Apply ``function`` to the gradients of every lane, all lanes at once."""
        gradients = {n: self.stack.gradient(n) for n in self.stack.names}
        trained = {n: self.stack.tensor(n) for n in self.stack.names}
        if self._shared is None:
            # frozen tensors that differ by seed belong to the lanes too; the others are shared
            of_lanes = {*trained, *self.per_seed}
            self._shared = {n: t for n, t in named_tensors(self.model).items() if n not in of_lanes}
        shared = self._shared

        def one(
            values: dict[str, Tensor], lane_gradients: dict[str, Tensor]
        ) -> Mapping[str, Tensor]:
            return function({**shared, **values}, lane_gradients)

        for name, gradient in vmap(one)({**trained, **self.per_seed}, gradients).items():
            gradients[name].copy_(gradient)

    def _values(self, lanes: _LaneRange) -> dict[str, Tensor]:
        """Return these lanes' own tensors by name: trained leaves, and frozen ones by seed."""
        first, width = lanes
        if lanes not in self._leaves:
            self._leaves[lanes] = self.stack.leaves(first, width)
            for name, leaf in self._leaves[lanes].items():
                for hook in self._hooks[name].values():
                    act = hook if width == 1 else vmap(hook)
                    leaf.register_hook(act)  # type: ignore[no-untyped-call]  # torch's has no types
        seeded = {
            n: t[first] if width == 1 else t[first : first + width]
            for n, t in self.per_seed.items()
        }
        return {**self._leaves[lanes], **seeded}

    def _activate(self, lanes: _LaneRange) -> None:
        """Select these lanes' random keys, and put their tensors into the model."""
        self.random.select(*lanes)
        if self._active == lanes:
            return
        for name, value in self._values(lanes).items():
            for slot in self._slots[name]:
                slot.owner[slot.key] = value
        self._active = lanes

    def _dropouts_in(self, module: nn.Module) -> list[dropout.KeyedDropout]:
        inside = set(module.modules())
        return [d for d in self.dropouts if d.module in inside]


class _FunctionOfModel(nn.Module):
    """Wraps a function of a model as a module, for ``functional_call``."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module], Tensor | None]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self) -> Tensor | None:
        return self.function(self.model)


def _includes_output_layer(units: Sequence[VmappedModule], model: Any) -> bool:
    """Return whether a vmapped module is the model's output layer, or a part of it."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    inside = set() if head is None else set(head.modules())
    return any(unit.module in inside for unit in units)


def _mixing_reason(model: nn.Module, names: Iterable[str]) -> str | None:
    """Return why a row's result would depend on other lanes; None if it would not."""
    if quantization.mixes_rows(model):
        return quantization.MIXES_ROWS_REASON
    if any(part in name for name in names for part in POSITION_TABLES):
        return "it trains a table of relative positions, which the base reads once for all trials"
    return None


def _find_slots(model: nn.Module, lane_tensors: Mapping[int, str]) -> dict[str, list[TensorSlot]]:
    """Return every slot of each lane tensor in the model: a shared one has several."""
    slots: dict[str, list[TensorSlot]] = {name: [] for name in lane_tensors.values()}
    for module in model.modules():
        for owner in (module._parameters, module._buffers):
            for key, tensor in owner.items():
                if id(tensor) in lane_tensors:
                    slots[lane_tensors[id(tensor)]].append(TensorSlot(owner, key))
    return slots

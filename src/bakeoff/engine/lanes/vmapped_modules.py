"""Modules that own trained tensors, run under ``vmap`` while lanes are batched.

The rest of a model is frozen and sees the lanes folded into the batch. A vmapped module unfolds
``[K * B, ...]`` to ``[K, B, ...]``, runs the *unmodified* module under ``torch.func.vmap`` with the
lanes' own tensors, and folds its output. Frozen parts inside it (the wrapped linear layer,
quantised or not) are folded back into the batch, so that one matrix product serves all lanes and
vmap never enters them. When compiled, only the matrix products are folded (``vmapped_linear``).

Tensor axes: K = lanes, B = rows of one lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BasePromptEncoder, BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree

from bakeoff.engine.accelerators import Unsupported
from bakeoff.engine.lanes.dropout import KeyedDropout
from bakeoff.engine.lanes.vmap_escape import call_outside_vmap, is_batched
from bakeoff.engine.lanes.vmapped_linear import LaneMatmuls
from bakeoff.engine.packing.attention import ActivePass

_WRAPPERS = (BaseTunerLayer, AuxiliaryTrainingWrapper, BasePromptEncoder)
"""PEFT's classes that wrap a module and read its trained tensors themselves."""


class LanesMixed(Unsupported):
    """A module with lane tensors is given what is not divided into lanes."""


class TensorSlot(NamedTuple):
    """Location of a tensor: the parameters or buffers of a module, and a key."""

    owner: dict[str, Any]
    key: str


class ClassForward(nn.Module):
    """Calls the forward of a module's class, bypassing one installed on the instance."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the inner module as its class defines it."""
        return type(self.inner).forward(self.inner, *args, **kwargs)


class VmappedModule:
    """Replacement for the forward of one module while lanes are batched, set on the instance.

    ``local_names`` are the module's names of its lane tensors; their values, ``[K, ...]``, are in
    the module's slots.
    """

    def __init__(
        self, module: nn.Module, local_names: Sequence[str], dropouts: Sequence[KeyedDropout]
    ) -> None:
        self.module = module
        self.shell = ClassForward(module)
        self.local_names = tuple(local_names)
        self.slots = [find_slot(module, name) for name in local_names]
        self.matmuls = LaneMatmuls()
        self.dropouts = tuple(dropouts)
        self.lanes = 1
        """Number of lanes in the batch."""
        self.rows_per_lane = 0
        """Number of rows of the batch that belong to each lane."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Unfold the lanes, run the module for each, and fold its output."""
        if len(args) == 1 and not kwargs:  # the common case: skip the tree
            return self._run([args[0]], lambda flat: (tuple(flat), {}))
        values, tree = pytree.tree_flatten((args, kwargs))
        return self._run(values, lambda flat: pytree.tree_unflatten(flat, tree))

    def _run(self, values: list[Any], rebuild: Callable[[list[Any]], Any]) -> Any:
        """Run all lanes on flat arguments; ``rebuild`` makes (args, kwargs) of them again."""
        # Not every tensor argument holds lanes: masks and position tables may be shared. Only
        # batched ones enter vmap; the others are seen by each lane as they are.
        batched = self._batched(values)
        tensors = [v for v, marked in zip(values, batched, strict=True) if marked]
        stacked = [attrgetter(name)(self.module) for name in self.local_names]
        # Keys are taken here, for all lanes at once, and enter vmap as an argument: inside it a
        # dropout sees one lane and could not tell which.
        dropouts = [d for d in self.dropouts if d.module.training]
        keys = [d.next_keys() for d in dropouts]

        def run_lane(own: list[Tensor], keys: list[Tensor], inputs: list[Tensor]) -> Any:
            args, kwargs = rebuild(_replace_marked(values, batched, inputs))
            for dropout, key in zip(dropouts, keys, strict=True):
                dropout.lane_key = key
            try:
                output = self._call(own, args, kwargs)
            finally:
                for dropout in dropouts:
                    dropout.lane_key = None
            if isinstance(output, Tensor):
                return output
            # vmap returns tensors only: what surrounds them is the same in every lane and is
            # passed out through ``outputs``
            outputs.append(output)
            return _tensor_leaves(output)

        outputs: list[Any] = []
        has_input = len(tensors) > 0  # not bool(): torch 2.11 cannot compile that of a list
        unfolded = [t.reshape(self.lanes, -1, *t.shape[1:]) for t in tensors]  # [K * B] -> [K, B]
        result = vmap(run_lane, randomness="different")(stacked, keys, unfolded)
        if isinstance(result, Tensor):
            return self._fold(result, has_input)
        return _replace_tensor_leaves(outputs[0], [self._fold(t, has_input) for t in result])

    def _call(self, own: Sequence[Tensor], args: Any, kwargs: Any) -> Any:
        """Run the module with one lane's tensors in its slots."""
        if torch.compiler.is_compiling():
            named = {f"inner.{n}": t for n, t in zip(self.local_names, own, strict=True)}
            with self.matmuls:
                return functional_call(self.shell, named, args, kwargs)
        # functional_call without its walk over the module, which costs time on every call
        before = [slot.owner[slot.key] for slot in self.slots]
        for slot, tensor in zip(self.slots, own, strict=True):
            slot.owner[slot.key] = tensor
        try:
            with self.matmuls:
                return self.shell(*args, **kwargs)
        finally:
            for slot, tensor in zip(self.slots, before, strict=True):
                slot.owner[slot.key] = tensor

    def _batched(self, values: Sequence[Any]) -> list[bool]:
        """Mark the arguments that hold lanes: tensors as long as the first, if K divides that.

        Raises:
            LanesMixed: the first has neither one row nor rows that divide into lanes.
        """
        sizes = [v.shape[0] if isinstance(v, Tensor) and v.ndim else 0 for v in values]
        rows = next((n for n in sizes if n), 0)
        if rows > 1 and rows % self.lanes:
            kind = type(self.module).__name__
            raise LanesMixed(f"a layer with trained tensors ({kind}) is not given the trials' rows")
        return [bool(n) and n == rows and n % self.lanes == 0 for n in sizes]

    def _fold(self, out: Tensor, has_input: bool) -> Tensor:
        """Return ``[K, B, ...]`` as ``[K * B, ...]``."""
        if not has_input and out.ndim > 1 and out.shape[1] == 1 and self.rows_per_lane > 1:
            # without batched inputs (position embeddings, for example) a lane returns a single
            # row, which stands for all rows of its batch
            out = out.expand(out.shape[0], self.rows_per_lane, *out.shape[2:])
        return out.flatten(0, 1)


def _replace_marked(
    values: Sequence[Any], places: Sequence[bool], tensors: Iterable[Tensor]
) -> list[Any]:
    """Return the values with the marked ones replaced by these tensors."""
    replacements = iter(tensors)
    return [next(replacements) if marked else v for v, marked in zip(values, places, strict=True)]


def _tensor_leaves(output: Any) -> list[Tensor]:
    """Return the tensors inside an output."""
    return [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]


def _replace_tensor_leaves(output: Any, tensors: Iterable[Tensor]) -> Any:
    """Return an output with its tensors replaced by these."""
    leaves, shape = pytree.tree_flatten(output)
    places = [isinstance(x, Tensor) for x in leaves]
    return pytree.tree_unflatten(_replace_marked(leaves, places, tensors), shape)


class FoldedModule:
    """Replacement for the forward of a frozen module inside a vmapped one, set on the instance.

    It folds the lanes into the batch and runs the module on plain tensors, outside vmap, so that
    custom operators work too.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.class_forward = type(module).forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Fold the lanes of the arguments into their batch; without any, just run the module."""
        if torch.compiler.is_compiling():
            return self.class_forward(self.module, *args, **kwargs)
        if len(args) == 1 and not kwargs and is_batched(args[0]):
            return _call_folded(lambda folded: self.class_forward(self.module, *folded), args)
        if ActivePass.layout is None:
            return self._fold_all(args, kwargs)
        # packed attention folds lanes itself, in its vmap rule, and must for compilation
        return self.class_forward(self.module, *args, **kwargs)

    def _fold_all(self, args: Any, kwargs: Any) -> Any:
        """Fold the lanes of all batched tensors, if they have the same number of rows."""
        values, tree = pytree.tree_flatten((args, kwargs))
        places = [is_batched(v) for v in values]
        tensors = [v for v, marked in zip(values, places, strict=True) if marked]
        if not tensors or any(x.ndim < 2 or len(x) != len(tensors[0]) for x in tensors):
            return self.class_forward(self.module, *args, **kwargs)

        def call(folded: Sequence[Tensor]) -> Any:
            inner_args, inner_kwargs = pytree.tree_unflatten(
                _replace_marked(values, places, folded), tree
            )
            return self.class_forward(self.module, *inner_args, **inner_kwargs)

        return _call_folded(call, tensors)


def _call_folded(call: Callable[[Sequence[Tensor]], Any], tensors: Sequence[Tensor]) -> Any:
    """Call outside vmap with the tensors' lanes folded into their batch; batch the output."""
    outputs: list[Any] = []

    def fold(stacked: Sequence[Tensor]) -> list[Tensor]:
        if stacked[0].ndim < 3:  # one vector per lane: the lanes are the batch
            outputs.append(call(stacked))
            return _tensor_leaves(outputs[0])
        outputs.append(call([x.flatten(0, 1) for x in stacked]))
        return [x.reshape(len(stacked[0]), -1, *x.shape[1:]) for x in _tensor_leaves(outputs[0])]

    tensors_out = call_outside_vmap(fold, tensors)
    return _replace_tensor_leaves(outputs[0], tensors_out)


def find_lane_modules(
    model: nn.Module, lane_tensors: Mapping[int, str]
) -> Iterator[tuple[nn.Module, list[str]]]:
    """Yield each module to run under vmap, with its names of its lane tensors.

    ``lane_tensors`` maps ``id(tensor)`` to a name, for parameters and buffers alike. Such a module
    is a PEFT layer that holds lane tensors, or else the smallest module that owns one directly.
    """
    names = _local_names(model, lane_tensors)
    if not names:
        return
    # a tuner holds tensors that its layers share (a bank of vectors) and does not read them
    holder = _is_container(model) or isinstance(model, BaseTuner)
    if isinstance(model, _WRAPPERS) or (
        not holder and any(_reads_directly(model, name) for name in names)
    ):
        yield model, names
        return
    seen: set[int] = set()
    for child in model.children():
        if id(child) not in seen:
            seen.add(id(child))
            yield from find_lane_modules(child, lane_tensors)


def find_frozen_parts(module: nn.Module, lane_tensors: Mapping[int, str]) -> Iterator[nn.Module]:
    """Yield the largest modules inside a vmapped one that hold tensors but no lane tensors."""
    for child in module.children():
        if _local_names(child, lane_tensors):
            yield from find_frozen_parts(child, lane_tensors)
        elif not _is_container(child) and next(child.parameters(), None) is not None:
            yield child


def find_slot(module: nn.Module, name: str) -> TensorSlot:
    """Return the slot of a tensor by its dotted name."""
    *path, key = name.split(".")
    for part in path:
        module = getattr(module, part)
    return TensorSlot(module._parameters if key in module._parameters else module._buffers, key)


def named_tensors_with_aliases(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return all parameters and buffers of a module, shared ones under each of their names."""
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]


def _local_names(module: nn.Module, lane_tensors: Mapping[int, str]) -> list[str]:
    return [
        name for name, tensor in named_tensors_with_aliases(module) if id(tensor) in lane_tensors
    ]


def _is_container(module: nn.Module) -> bool:
    """Return whether a module has no forward of its own and only holds others."""
    return type(module).forward is nn.Module.forward


def _reads_directly(module: nn.Module, name: str) -> bool:
    """Return whether a module reads this tensor itself: its own, or a bare container's."""
    *path, _ = name.split(".")
    for part in path:
        module = getattr(module, part)
        if not _is_container(module):
            return False
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return False
    return True

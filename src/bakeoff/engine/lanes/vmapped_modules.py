"""Units: the modules that own trained tensors, run under ``vmap`` while lanes ride together.

Everything else of a model, frozen, sees the lanes folded into the batch and never knows of them. A
unit unfolds ``[K * b, ...]`` to ``[K, b, ...]``, runs the *unmodified* module under
``torch.func.vmap`` with the lanes' own tensors, and folds its output. Frozen parts inside a unit
(the wrapped linear, quantised or not) are folded back into the batch, so one matmul serves all
lanes and vmap never enters them; compiled, matrix products alone do that (``linear``). Used by
``lanes``.
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

from bakeoff.engine.lanes.dropout import KeyedDropout
from bakeoff.engine.lanes.vmap_escape import call_outside_vmap, is_batched
from bakeoff.engine.lanes.vmapped_linear import LaneMatmuls
from bakeoff.engine.packing.attention import ActivePass

_WRAPPERS = (BaseTunerLayer, AuxiliaryTrainingWrapper, BasePromptEncoder)


class TensorSlot(NamedTuple):
    """Where a tensor lies: in a module's own parameters or buffers, under a key."""

    held: dict[str, Any]
    key: str


class ClassForward(nn.Module):
    """Calls a module's own class forward, past what was installed on the instance."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the inner module as its class defines it."""
        return type(self.inner).forward(self.inner, *args, **kwargs)


class VmappedModule:
    """The forward of one module while lanes ride together: installed on the instance.

    ``local`` holds the module's own names of its lane tensors; their values, ``[K, ...]``, lie in
    the module's slots.
    """

    def __init__(
        self, module: nn.Module, local: Sequence[str], drops: Sequence[KeyedDropout]
    ) -> None:
        self.module = module
        self.shell = ClassForward(module)
        self.local_names = tuple(local)
        self.slots = [find_slot(module, name) for name in local]
        self.matmuls = LaneMatmuls()
        self.lanes = 1
        self.dropouts = tuple(drops)
        self.rows_per_lane = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Unfold, run each lane, fold."""
        if len(args) == 1 and not kwargs:  # a plain layer: spare it the tree
            return self._run([args[0]], lambda mixed: (tuple(mixed), {}))
        values, tree = pytree.tree_flatten((args, kwargs))
        return self._run(values, lambda mixed: pytree.tree_unflatten(mixed, tree))

    def _run(self, values: list[Any], call: Callable[[list[Any]], Any]) -> Any:
        riding = self._riding(values)
        tensors = [v for v, rides in zip(values, riding, strict=True) if rides]
        stacked = [attrgetter(name)(self.module) for name in self.local_names]
        drops = [d for d in self.dropouts if d.module.training]
        keys = [d.random.next_key() for d in drops]

        def one(own: list[Tensor], keys: list[Tensor], given: list[Tensor]) -> Any:
            inner_args, inner_kwargs = call(_replace_marked(values, riding, given))
            for drop, key in zip(drops, keys, strict=True):
                drop.lane_key = key
            try:
                answer = self._call(own, inner_args, inner_kwargs)
            finally:
                for drop in drops:
                    drop.lane_key = None
            if isinstance(answer, Tensor):
                return answer
            answers.append(answer)
            return _tensor_leaves(answer)  # vmap returns nothing else

        answers: list[Any] = []
        fed = len(tensors) > 0  # not bool(): torch 2.11 cannot compile that of a list
        unfolded = [t.reshape(self.lanes, -1, *t.shape[1:]) for t in tensors]
        out = vmap(one, randomness="different")(stacked, keys, unfolded)
        if isinstance(out, Tensor):
            return self._fold(out, fed)
        return _replace_tensor_leaves(answers[0], [self._fold(t, fed) for t in out])

    def _call(self, own: Sequence[Tensor], args: Any, kwargs: Any) -> Any:
        """Run the module with these tensors in its slots."""
        if torch.compiler.is_compiling():
            named = {f"inner.{n}": t for n, t in zip(self.local_names, own, strict=True)}
            with self.matmuls:
                return functional_call(self.shell, named, args, kwargs)
        # what functional_call does, less its walk over the module on every call
        before = [slot.held[slot.key] for slot in self.slots]
        for slot, tensor in zip(self.slots, own, strict=True):
            slot.held[slot.key] = tensor
        try:
            with self.matmuls:
                return self.shell(*args, **kwargs)
        finally:
            for slot, tensor in zip(self.slots, before, strict=True):
                slot.held[slot.key] = tensor

    def _riding(self, values: Sequence[Any]) -> list[bool]:
        """Say which values carry lanes: the tensors as long as the first that K divides."""
        sizes = [v.shape[0] if isinstance(v, Tensor) and v.ndim else 0 for v in values]
        rows = next((n for n in sizes if n), 0)
        return [bool(n) and n == rows and n % self.lanes == 0 for n in sizes]

    def _fold(self, out: Tensor, fed: bool) -> Tensor:
        if not fed and out.ndim > 1 and out.shape[1] == 1 and self.rows_per_lane > 1:
            # no input of the lanes' own (position embeddings, say): one row a lane serves its batch
            out = out.expand(out.shape[0], self.rows_per_lane, *out.shape[2:])
        return out.flatten(0, 1)


def _replace_marked(
    values: Sequence[Any], places: Sequence[bool], tensors: Iterable[Tensor]
) -> list[Any]:
    """Return the values with these tensors in the places marked."""
    ours = iter(tensors)
    return [next(ours) if marked else v for v, marked in zip(values, places, strict=True)]


def _tensor_leaves(answer: Any) -> list[Tensor]:
    """Return the tensors of an answer: what else it holds is the same in every lane."""
    return [x for x in pytree.tree_leaves(answer) if isinstance(x, Tensor)]


def _replace_tensor_leaves(answer: Any, tensors: Iterable[Tensor]) -> Any:
    """Return an answer with these tensors in the places of its own."""
    leaves, shape = pytree.tree_flatten(answer)
    places = [isinstance(x, Tensor) for x in leaves]
    return pytree.tree_unflatten(_replace_marked(leaves, places, tensors), shape)


class FoldedModule:
    """The forward of a frozen module inside a unit: installed on the instance.

    The lanes go into the batch, and the module runs on plain tensors as if there were no lanes
    (custom operators included).
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own = type(module).forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Fold a lone tensor argument's lanes into its batch; pass anything else on."""
        if torch.compiler.is_compiling():
            return self.own(self.module, *args, **kwargs)
        if len(args) == 1 and not kwargs and is_batched(args[0]):
            return _call_folded(lambda given: self.own(self.module, *given), args)
        if ActivePass.layout is None:
            return self._all(args, kwargs)
        # packed attention carries lanes itself, and only so can it be compiled
        return self.own(self.module, *args, **kwargs)

    def _all(self, args: Any, kwargs: Any) -> Any:
        """Fold the lanes of all tensors, where they are equally many rows."""
        values, tree = pytree.tree_flatten((args, kwargs))
        places = [is_batched(v) for v in values]
        given = [v for v, is_laned in zip(values, places, strict=True) if is_laned]
        if not given or any(x.ndim < 2 or len(x) != len(given[0]) for x in given):
            return self.own(self.module, *args, **kwargs)

        def call(folded: Sequence[Tensor]) -> Any:
            inner_args, inner_kwargs = pytree.tree_unflatten(
                _replace_marked(values, places, folded), tree
            )
            return self.own(self.module, *inner_args, **inner_kwargs)

        return _call_folded(call, given)


def _call_folded(call: Callable[[Sequence[Tensor]], Any], given: Sequence[Tensor]) -> Any:
    """Call outside vmap with the tensors' lanes in their batch; take its answer back in."""
    answers: list[Any] = []

    def fold(stacked: Sequence[Tensor]) -> list[Tensor]:
        if stacked[0].ndim < 3:  # one vector a lane: the lanes are the batch
            answers.append(call(stacked))
            return _tensor_leaves(answers[0])
        answers.append(call([x.flatten(0, 1) for x in stacked]))
        return [x.reshape(len(stacked[0]), -1, *x.shape[1:]) for x in _tensor_leaves(answers[0])]

    out = call_outside_vmap(fold, given)
    return _replace_tensor_leaves(answers[0], out)


def find_lane_modules(
    model: nn.Module, lane_tensors: Mapping[int, str]
) -> Iterator[tuple[nn.Module, list[str]]]:
    """Yield each unit with its own names of its lane tensors.

    ``lane_tensors`` maps ``id(tensor)`` to a name, for parameters and buffers alike. A unit is a
    PEFT layer that holds lane tensors, or else the smallest module that owns one directly.
    """
    local = _local_names(model, lane_tensors)
    if not local:
        return
    # a tuner holds what its layers share (a bank of vectors) and reads none of it
    holder = _is_container(model) or isinstance(model, BaseTuner)
    if isinstance(model, _WRAPPERS) or (
        not holder and any(_reads_directly(model, name) for name in local)
    ):
        yield model, local
        return
    seen: set[int] = set()
    for child in model.children():
        if id(child) not in seen:
            seen.add(id(child))
            yield from find_lane_modules(child, lane_tensors)


def find_frozen_parts(unit: nn.Module, lane_tensors: Mapping[int, str]) -> Iterator[nn.Module]:
    """Yield the largest modules inside a unit that hold tensors, none of them the lanes' own."""
    for child in unit.children():
        if _local_names(child, lane_tensors):
            yield from find_frozen_parts(child, lane_tensors)
        elif not _is_container(child) and next(child.parameters(), None) is not None:
            yield child


def find_slot(module: nn.Module, name: str) -> TensorSlot:
    """Return the slot at a dotted name."""
    *path, key = name.split(".")
    for part in path:
        module = getattr(module, part)
    return TensorSlot(module._parameters if key in module._parameters else module._buffers, key)


def named_tensors_with_aliases(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return all parameters and buffers of a module; a shared one under each of its names."""
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]


def _local_names(module: nn.Module, lane_tensors: Mapping[int, str]) -> list[str]:
    return [
        name for name, tensor in named_tensors_with_aliases(module) if id(tensor) in lane_tensors
    ]


def _is_container(module: nn.Module) -> bool:
    """Say whether a module computes nothing: it only holds others."""
    return type(module).forward is nn.Module.forward


def _reads_directly(module: nn.Module, name: str) -> bool:
    """Say whether a module reads this tensor itself: its own, or of a bare container of tensors."""
    *path, _ = name.split(".")
    for part in path:
        module = getattr(module, part)
        if not _is_container(module):
            return False
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return False
    return True

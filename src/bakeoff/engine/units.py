"""Units: the modules that own trained tensors, run under ``vmap`` while lanes ride together.

Everything else of a model, frozen, sees the lanes folded into the batch and never knows of them. A
unit unfolds ``[K * b, ...]`` to ``[K, b, ...]``, runs the *unmodified* module under
``torch.func.vmap`` with the lanes' own tensors, and folds its output. Frozen parts inside a unit
(the wrapped linear, quantised or not) are folded back into the batch, so one matmul serves all
lanes and vmap never enters them. Used by ``lanes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BasePromptEncoder, BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.utils import _pytree as pytree

from bakeoff.engine.attention import Current
from bakeoff.engine.dropout import Keyed

_WRAPPERS = (BaseTunerLayer, AuxiliaryTrainingWrapper, BasePromptEncoder)


class Shell(nn.Module):
    """Calls a module's own class forward, past what was installed on the instance."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the inner module as its class defines it."""
        return type(self.inner).forward(self.inner, *args, **kwargs)


class Unit:
    """The forward of one module while lanes ride together: installed on the instance.

    ``local`` holds the module's own names of its lane tensors; their values, ``[K, ...]``, lie in
    the module's slots.
    """

    def __init__(self, module: nn.Module, local: Sequence[str], drops: Sequence[Keyed]) -> None:
        self.shell = Shell(module)
        self.local = tuple(local)
        self.lanes = 1
        self.drops = tuple(drops)
        self.per_lane = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Unfold, run each lane, fold."""
        if len(args) == 1 and not kwargs:  # a plain layer: spare it the tree
            return self._run([args[0]], lambda mixed: (tuple(mixed), {}))
        values, tree = pytree.tree_flatten((args, kwargs))
        return self._run(values, lambda mixed: pytree.tree_unflatten(mixed, tree))

    def _run(self, values: list[Any], call: Callable[[list[Any]], Any]) -> Any:
        laned = self._laned(values)
        tensors = [v for v, is_laned in zip(values, laned, strict=True) if is_laned]
        stacked = [slot(self.shell.inner, name) for name in self.local]
        keys = [d.draws.take() for d in self.drops if d.module.training]

        def one(own: list[Tensor], keys: list[Tensor], given: list[Tensor]) -> Any:
            ours = iter(given)
            mixed = [
                next(ours) if is_laned else v for v, is_laned in zip(values, laned, strict=True)
            ]
            inner_args, inner_kwargs = call(mixed)
            named = {f"inner.{n}": t for n, t in zip(self.local, own, strict=True)}
            for drop, key in zip(self.drops, keys, strict=False):
                drop.inside = key
            try:
                answer = functional_call(self.shell, named, inner_args, inner_kwargs)
            finally:
                for drop in self.drops:
                    drop.inside = None
            if isinstance(answer, Tensor):
                return answer
            # vmap returns tensors alone; what else an answer holds is the same in every lane
            answers.append(pytree.tree_flatten(answer))
            return [leaf for leaf in answers[0][0] if isinstance(leaf, Tensor)]

        answers: list[Any] = []
        unfolded = [t.reshape(self.lanes, -1, *t.shape[1:]) for t in tensors]
        out = vmap(one, randomness="different")(stacked, keys, unfolded)
        if isinstance(out, Tensor):
            return self._fold(out, bool(tensors))
        leaves, shape = answers[0]
        return _filled(leaves, shape, [self._fold(t, bool(tensors)) for t in out])

    def _laned(self, values: Sequence[Any]) -> list[bool]:
        """Say which values carry lanes: the tensors as long as the first that K divides."""
        sizes = [v.shape[0] if isinstance(v, Tensor) and v.ndim else 0 for v in values]
        rows = next((n for n in sizes if n), 0)
        return [bool(n) and n == rows and n % self.lanes == 0 for n in sizes]

    def _fold(self, out: Tensor, fed: bool) -> Tensor:
        if not fed and out.ndim > 1 and out.shape[1] == 1 and self.per_lane > 1:
            # no input of the lanes' own (position embeddings, say): one row a lane serves its batch
            out = out.expand(out.shape[0], self.per_lane, *out.shape[2:])
        return out.flatten(0, 1)


def _filled(leaves: Sequence[Any], shape: Any, tensors: Sequence[Tensor]) -> Any:
    """Return an answer with these tensors in the places of its own."""
    ours = iter(tensors)
    return pytree.tree_unflatten(
        [next(ours) if isinstance(x, Tensor) else x for x in leaves], shape
    )


class _Folded(torch.autograd.Function):
    """Carries a frozen call out of vmap: lanes into the batch, call, unfold."""

    @staticmethod
    def forward(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return call(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Save nothing: under vmap the rule below does the work."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise AssertionError("a folded call is differentiated outside vmap")

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: Callable[[Tensor], Tensor], x: Tensor) -> Any:
        if in_dims[1] is None:
            return call(x), None
        folded = x.movedim(in_dims[1], 0)
        if folded.ndim < 3:
            return call(folded), 0
        out = call(folded.flatten(0, 1))
        return out.reshape(info.batch_size, -1, *out.shape[1:]), 0


@torch.library.custom_op("bakeoff::lane_linear", mutates_args=())
def lane_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a linear layer; under vmap a shared matrix takes all lanes as one batch.

    What compiled units use for ``nn.Linear``: vmap's own rules for it ask for sizes that one
    compilation for many row lengths does not know (torch 2.11: "Cannot call numel() on tensor with
    symbolic sizes").
    """
    return functional.linear(x, weight, bias)


@lane_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _linear_backward(ctx: Any, grad: Tensor) -> Any:
    x, weight, bias = ctx.saved_tensors
    flat = grad.flatten(0, -2)
    return (
        grad @ weight if ctx.needs_input_grad[0] else None,
        flat.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None,
        flat.sum(0) if bias is not None and ctx.needs_input_grad[2] else None,
    )


def _linear_lanes(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    x = x.movedim(dims[0], 0) if dims[0] is not None else x.expand(info.batch_size, *x.shape)
    if dims[1] is None:
        return lane_linear(x, weight, bias), 0
    out = torch.bmm(x.flatten(1, -2), weight.movedim(dims[1], 0).transpose(1, 2))
    if bias is not None:
        out = out + (bias.movedim(dims[2], 0)[:, None] if dims[2] is not None else bias)
    return out.view(*x.shape[:-1], out.shape[-1]), 0


lane_linear.register_autograd(_linear_backward, setup_context=_save)
lane_linear.register_vmap(_linear_lanes)


class Linear:
    """The forward of an ``nn.Linear`` inside a compiled unit: installed on the instance."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply in the precision that autocast asks for."""
        weight: Tensor = self.module.weight
        bias: Tensor | None = self.module.bias
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, bias = x.to(dtype), bias if bias is None else bias.to(dtype)
            return _linear(x, weight.to(dtype), bias)
        return _linear(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = lane_linear(x, weight, bias)
    return out


class _FoldedAll(_Folded):
    """As above, for any number of tensors in and out."""

    @staticmethod
    def forward(call: Callable[..., Any], *given: Tensor) -> Any:
        return call(*given)

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: Callable[..., Any], *given: Tensor) -> Any:
        folded = (
            x.movedim(dim, 0).flatten(0, 1) for x, dim in zip(given, in_dims[1:], strict=True)
        )
        out = call(*folded)
        return tuple(x.reshape(info.batch_size, -1, *x.shape[1:]) for x in out), (0,) * len(out)


class Fold:
    """The forward of a frozen module inside a unit: installed on the instance."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own = type(module).forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Fold a lone tensor argument's lanes into its batch; pass anything else on."""
        if len(args) == 1 and not kwargs and torch._C._functorch.is_batchedtensor(args[0]):
            return _Folded.apply(lambda x: self.own(self.module, x), args[0])  # type: ignore[no-untyped-call]
        if Current.layout is None:
            return self._all(args, kwargs)
        # packed attention carries lanes itself, and only so can it be compiled
        return self.own(self.module, *args, **kwargs)

    def _all(self, args: Any, kwargs: Any) -> Any:
        """Fold the lanes of all tensors, where they are equally many rows."""
        values, tree = pytree.tree_flatten((args, kwargs))
        laned = [isinstance(v, Tensor) and torch._C._functorch.is_batchedtensor(v) for v in values]
        given = [v for v, is_laned in zip(values, laned, strict=True) if is_laned]
        if not given or any(x.ndim < 2 or len(x) != len(given[0]) for x in given):
            return self.own(self.module, *args, **kwargs)
        answers: list[Any] = []

        def call(*folded: Tensor) -> tuple[Tensor, ...]:
            ours = iter(folded)
            mixed = [
                next(ours) if is_laned else v for v, is_laned in zip(values, laned, strict=True)
            ]
            inner_args, inner_kwargs = pytree.tree_unflatten(mixed, tree)
            answers.append(pytree.tree_flatten(self.own(self.module, *inner_args, **inner_kwargs)))
            return tuple(leaf for leaf in answers[0][0] if isinstance(leaf, Tensor))

        out = _FoldedAll.apply(call, *given)  # type: ignore[no-untyped-call]
        leaves, shape = answers[0]
        return _filled(leaves, shape, out)


def find(
    model: nn.Module, lane_tensors: Mapping[int, str]
) -> Iterator[tuple[nn.Module, list[str]]]:
    """Yield each unit with its own names of its lane tensors.

    ``lane_tensors`` maps ``id(tensor)`` to a name, for parameters and buffers alike. A unit is a
    PEFT layer that holds lane tensors, or else the smallest module that owns one directly.
    """
    local = _own_names(model, lane_tensors)
    if not local:
        return
    bare = type(model).forward is nn.Module.forward
    # a tuner holds what its layers share (a bank of vectors) and reads none of it
    holder = bare or isinstance(model, BaseTuner)
    if isinstance(model, _WRAPPERS) or (
        not holder and any(_owned_by(model, name) for name in local)
    ):
        yield model, local
        return
    seen: set[int] = set()
    for child in model.children():
        if id(child) not in seen:
            seen.add(id(child))
            yield from find(child, lane_tensors)


def frozen_parts(unit: nn.Module, lane_tensors: Mapping[int, str]) -> Iterator[nn.Module]:
    """Yield the largest modules inside a unit that hold tensors, none of them the lanes' own."""
    for child in unit.children():
        if _own_names(child, lane_tensors):
            yield from frozen_parts(child, lane_tensors)
        elif type(child).forward is not nn.Module.forward and any(True for _ in child.parameters()):
            yield child


def slot(module: nn.Module, name: str) -> Tensor:
    """Return the tensor at a dotted name."""
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    tensor: Tensor = getattr(module, last)
    return tensor


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Place a tensor in the slot at a dotted name, whatever its shape."""
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    if last in module._parameters:
        module._parameters[last] = value  # type: ignore[assignment]
    else:
        module._buffers[last] = value


def _own_names(module: nn.Module, lane_tensors: Mapping[int, str]) -> list[str]:
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return [name for name, tensor in named if id(tensor) in lane_tensors]


def _owned_by(module: nn.Module, name: str) -> bool:
    """Say whether a module reads this tensor itself: its own, or of a bare container of tensors."""
    *path, _ = name.split(".")
    for part in path:
        module = getattr(module, part)
        if type(module).forward is not nn.Module.forward:
            return False
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return False
    return True

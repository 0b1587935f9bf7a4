"""The repeated layers of a base: where rows are packed, and the one layer that is compiled.

Each layer's forward is replaced on the instance. The first packs the hidden states and every
argument that counts tokens, the last unpacks; between them the model's own loop carries packed
states without knowing. Where compiling is on, all layers of one make run through a single compiled
function of a template layer, with that layer's tensors (stacked or not) as arguments: one
compilation serves them all.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from bakeoff.engine.lanes.vmapped_modules import ClassForward, named_tensors_with_aliases
from bakeoff.engine.packing.attention import ATTENTION_NAME, ActivePass, NotPackable, use_layout
from bakeoff.engine.packing.layout import Layout, pack, unpack
from bakeoff.engine.quantization import is_packed

_LAYER_IDENTITY = {"layer_idx", "layer_id", "layer_index", "kwargs", "module_name"}
"""Attributes that differ from layer to layer and change nothing in a forward pass without a cache
(``kwargs`` and ``module_name`` are PEFT's record of how and where a layer was made).
"""
MAX_LAYER_KINDS = 4
"""Most makes of layers that are compiled; beyond it compiling costs more than it gives."""


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class NotCompilable(Exception):
    """Compiling the layers would not pay; the message says why."""


class NotRecomputable(Exception):
    """A layer cannot be computed again in the backward pass; the message says why."""


class LayerStack:
    """The layers of a model, with packing, compiling and checkpointing put around them."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = find_layers(model)
        self.checkpointing = False
        """Each layer keeps its input alone, and is computed again in the backward pass."""
        self._packed: dict[int, Any] = {}
        self._shells = [ClassForward(layer) for layer in self.layers]
        self._compiled: list[Callable[..., Any]] = []
        for index, layer in enumerate(self.layers):
            layer.forward = _LayerForward(self, index)

    def compile(self) -> None:
        """Train every layer through one compiled template of its make.

        Evaluation stays as it is: compiling once more for it would cost more than it gives.

        Raises:
            NotCompilable: the layers differ too much.
        """
        if any(is_packed(p) for x in self.layers for p in x.parameters()):
            raise NotCompilable("quantised layers keep their scales outside their tensors")
        makes: list[tuple[nn.Module, Callable[..., Any]]] = []
        # from the back: the first layer to run must not be the template itself, or the compiler
        # takes its tensors' places in the stack for the template's, and compiles again for others
        for layer in reversed(self.layers):
            known = [f for first, f in makes if same_structure(first, layer)]
            if not known and len(makes) == MAX_LAYER_KINDS:
                raise NotCompilable(f"the layers are of more than {MAX_LAYER_KINDS} makes")
            if not known:
                known = [torch.compile(_Template(layer))]
                makes.append((layer, known[0]))
            self._compiled.insert(0, known[0])

    def run(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one layer on what the model handed it."""
        where = ActivePass.layout
        if where is None:
            return self._call(index, args, kwargs, compiled=False)
        compiled = bool(self._compiled) and torch.is_grad_enabled()
        last = index == len(self.layers) - 1
        if index == 0:
            self._packed.clear()
            if kwargs.get("past_key_values") is not None:
                raise NotPackable("keys and values from outside the batch (a prefix)")
            states = pack(_hidden_states(args, kwargs, where), where)
            if compiled and not states.requires_grad:
                # no view, and with a gradient, as in every other layer: one compilation, not two
                states = states.detach().requires_grad_()
            args = (states, *args[1:])
            kwargs.pop("hidden_states", None)
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: self._move(t, where), (args, kwargs))
        if compiled:
            _mark_dynamic(where, (args, kwargs))
        out = self._call(index, args, kwargs, compiled)
        return (
            pytree.tree_map_only(Tensor, lambda t: _unpack_output(t, where), out) if last else out
        )

    def _call(self, index: int, args: Any, kwargs: dict[str, Any], compiled: bool) -> Any:
        """Run one layer; where that is on, keep its input alone and run it again for the gradient.

        Raises:
            NotRecomputable: a second run would find another state than the first.
        """
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self._once(index, compiled, args, kwargs)
        if kwargs.get("past_key_values") is not None:
            raise NotRecomputable("layers that add to a cache of keys and values, run twice")
        # under vmap too: the units inside enter it anew each time, the layer itself is outside
        with set_checkpoint_early_stop(False):
            return checkpoint(
                self._once, index, compiled, args, kwargs,
                use_reentrant=False, context_fn=_recompute_contexts,
            )  # fmt: skip

    def _once(self, index: int, compiled: bool, args: Any, kwargs: dict[str, Any]) -> Any:
        if not compiled:
            return self._shells[index](*args, **kwargs)
        # views: the template's own tensors must not be seen to be those of the first layer
        held = list(named_tensors_with_aliases(self.layers[index]))
        views = {id(t): t.view_as(t) for _, t in held}
        own = {name: views[id(t)] for name, t in held}
        return self._compiled[index](own, args, kwargs)

    def _move(self, t: Tensor, where: Layout) -> Tensor:
        """Pack an argument that counts tokens, once a pass."""
        if t.ndim < 2 or t.shape[1] != where.longest or t.shape[0] not in (1, len(where.scatter)):
            return t
        if id(t) not in self._packed:
            rows = t.expand(len(where.scatter), *t.shape[1:])
            self._packed[id(t)] = (t, pack(rows, where))
        moved: Tensor = self._packed[id(t)][1]
        return moved


def _recompute_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of a layer's first run and of its second, with the same draws in both."""
    where, draws = ActivePass.layout, ActivePass.random
    calls = 0 if draws is None else draws.calls

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        with (
            use_layout(where, draws),
            draws.replay_from(calls) if draws else contextlib.nullcontext(),
        ):
            yield

    return contextlib.nullcontext(), again()


class _LayerForward:
    """The forward of one layer: installed on the instance."""

    def __init__(self, stack: LayerStack, index: int) -> None:
        self.stack = stack
        self.index = index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.stack.run(self.index, args, kwargs)


class _Template:
    """Calls one layer with the tensors of another of the same make."""

    def __init__(self, layer: nn.Module) -> None:
        self.shell = ClassForward(layer)

    def __call__(self, own: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        named = {f"inner.{n}": t for n, t in own.items()}
        return functional_call(self.shell, named, args, kwargs, tie_weights=False)


def _mark_dynamic(where: Layout, given: Any) -> None:
    """Tell the compiler which lengths vary, the row's and the longest example's.

    One compilation serves them all.
    """
    lengths = {where.gather.shape[1], where.longest}
    for t in pytree.tree_leaves((given, where)):
        if isinstance(t, Tensor) and t.ndim > 1 and t.shape[1] in lengths:
            torch._dynamo.maybe_mark_dynamic(t, 1)


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any], where: Layout) -> Tensor:
    states = args[0] if args else kwargs["hidden_states"]
    if states.shape[:2] != where.scatter.shape:
        raise NotPackable(
            f"the layers see {tuple(states.shape[:2])} tokens, the batch has "
            f"{tuple(where.scatter.shape)}"
        )
    found: Tensor = states
    return found


def _unpack_output(t: Tensor, where: Layout) -> Tensor:
    return unpack(t, where) if t.ndim > 2 and t.shape[:2] == where.gather.shape else t


def find_layers(model: nn.Module) -> list[nn.Module]:
    """Return the model's repeated layers: the longest list of modules of one class.

    Raises:
        NotPackable: there is none, or several stacks (an encoder and a decoder).
    """
    stacks = [
        list(m)
        for m in model.modules()
        if isinstance(m, nn.ModuleList) and len({type(x) for x in m}) == 1
        and any("attention" in type(x).__name__.lower() for x in m[0].modules())
    ]  # fmt: skip
    if not stacks:
        raise NotPackable("the base has no list of layers with attention")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise NotPackable("an encoder and a decoder")
    return max(stacks, key=lambda s: sum(p.numel() for x in s for p in x.parameters()))


def use_packed_attention(model: nn.Module) -> None:
    """Let the model attend through our function; without a layout it is SDPA with its masks."""
    whole: Any = model
    whole.set_attn_implementation(ATTENTION_NAME)


def same_structure(a: nn.Module, b: nn.Module) -> bool:
    """Say whether one layer's code with the other's tensors computes the other layer."""
    ours, theirs = dict(a.named_modules()), dict(b.named_modules())
    return list(ours) == list(theirs) and all(
        type(x) is type(y)
        and _plain_attributes(x) == _plain_attributes(y)
        and _tensor_specs(x) == _tensor_specs(y)
        for x, y in zip(ours.values(), theirs.values(), strict=True)
    )


def _plain_attributes(module: nn.Module) -> dict[str, str]:
    """Return a module's attributes that are neither tensors of its own nor modules, as text."""
    skipped = {"_parameters", "_buffers", "_modules", "forward", *_LAYER_IDENTITY}
    return {
        k: _ADDRESS.sub("", repr(v))
        for k, v in module.__dict__.items()
        if k not in skipped
        and isinstance(v, (bool, int, float, str, dict, list, tuple, set, Tensor))
    }


def _tensor_specs(module: nn.Module) -> Sequence[Any]:
    held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [(n, t.shape, t.dtype, t.requires_grad) for n, t in held]

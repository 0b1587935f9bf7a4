"""The repeated layers of a base: where rows are packed, compiled and recomputed.

The forward of each layer is replaced on the instance. The first layer packs the hidden states and
every argument with a token axis, the last one unpacks; in between, the model's own loop passes
packed states along unchanged. With compilation, all layers of one kind run through a single
compiled function of a template layer, with that layer's tensors (stacked or not) as arguments, so
that one compilation serves them all.

Tensor axes: K = lanes, B = rows of all lanes, L = padded length, T = slots of a packed row,
D = model width. Padded ``[B, L, D]``, packed ``[K, T, D]``.
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

from bakeoff.engine.accelerators import Unsupported
from bakeoff.engine.lanes.vmapped_modules import ClassForward, named_tensors_with_aliases
from bakeoff.engine.packing.attention import ATTENTION_NAME, ActivePass, NotPackable, use_layout
from bakeoff.engine.packing.layout import Layout, pack, unpack
from bakeoff.engine.quantization import is_packed

_LAYER_IDENTITY = {
    "layer_idx", "layer_id", "layer_index", "kwargs", "module_name", "_layer_idx",
}  # fmt: skip
"""Attributes that differ between layers and do not affect a forward pass without a cache
(``kwargs`` and ``module_name`` are PEFT's record of how and where a layer was created,
``_layer_idx`` is TinyLoRA's seed of a layer's random matrices).
"""
MAX_LAYER_KINDS = 4
"""Maximum number of layer kinds to compile; with more, compiling costs more than it saves."""


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class NotCompilable(Unsupported):
    """Compiling the layers would not save time; the message says why."""


class NotRecomputable(Unsupported):
    """A layer cannot be recomputed in the backward pass; the message says why."""


class LayerStack:
    """The layers of a model, wrapped for packing, compilation and checkpointing."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = find_layers(model)
        self.checkpointing = False
        """Each layer saves only its input and is recomputed in the backward pass."""
        self._packed: dict[int, Any] = {}
        self._drawn: set[Any] = set()
        self._shells = [ClassForward(layer) for layer in self.layers]
        self._compiled: list[Callable[..., Any]] = []
        for index, layer in enumerate(self.layers):
            layer.forward = _LayerForward(self, index)

    def compile(self) -> None:
        """Train every layer through one compiled template of its kind.

        Evaluation is not compiled: a second compilation would cost more than it saves.

        Raises:
            NotCompilable: the layers differ too much.
        """
        if any(is_packed(p) for x in self.layers for p in x.parameters()):
            raise NotCompilable("quantised layers keep their scales outside their tensors")
        kinds: list[tuple[nn.Module, Callable[..., Any]]] = []
        # from the back: if the first layer to run were the template itself, the compiler would
        # specialise on its tensors' offsets in the stack and recompile for every other layer
        for layer in reversed(self.layers):
            known = [f for first, f in kinds if same_structure(first, layer)]
            if not known and len(kinds) == MAX_LAYER_KINDS:
                raise NotCompilable(f"the layers are of more than {MAX_LAYER_KINDS} kinds")
            if not known:
                known = [torch.compile(_Template(layer))]
                kinds.append((layer, known[0]))
            self._compiled.insert(0, known[0])

    @contextlib.contextmanager
    def without_compilation(self) -> Iterator[None]:
        """Run the layers uncompiled in the block."""
        compiled, self._compiled = self._compiled, []
        try:
            yield
        finally:
            self._compiled = compiled

    def run(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one layer on the arguments that the model passed."""
        where = ActivePass.layout
        if where is None:
            return self._call(index, args, kwargs, compiled=False)
        compiled = bool(self._compiled) and torch.is_grad_enabled()
        last = index == len(self.layers) - 1
        if index == 0:
            self._packed.clear()
            if kwargs.get("past_key_values") is not None:
                raise NotPackable("its prefix comes as keys and values from outside the batch")
            states = pack(_hidden_states(args, kwargs, where), where)
            if compiled and not states.requires_grad:
                # not a view, and requiring a gradient, as in every other layer: otherwise the
                # first layer would need a compilation of its own
                states = states.detach().requires_grad_()
            args = (states, *args[1:])
            kwargs.pop("hidden_states", None)
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda t: self._pack_argument(t, where), (args, kwargs)
        )
        if compiled:
            self._draw_ahead(index, args, kwargs, where)
            _mark_dynamic(where, (args, kwargs))
        out = self._call(index, args, kwargs, compiled)
        return (
            pytree.tree_map_only(Tensor, lambda t: _unpack_output(t, where), out) if last else out
        )

    def _draw_ahead(self, index: int, args: Any, kwargs: dict[str, Any], where: Layout) -> None:
        """Run a layer that draws noise once, uncompiled, for each shape of a pass.

        Keys and noise are made on the host, which the compiler cannot trace: they must exist.
        """
        draws, shape = ActivePass.random, (index, where.gather.shape, where.scatter.shape)
        if draws is None or not draws.users or shape in self._drawn:
            return
        self._drawn.add(shape)
        calls = draws.calls
        with torch.no_grad():
            self._run_once(index, False, args, kwargs)
        draws.return_to(calls)

    def _call(self, index: int, args: Any, kwargs: dict[str, Any], compiled: bool) -> Any:
        """Run one layer; with checkpointing, save only its input and rerun it for the gradient.

        Raises:
            NotRecomputable: a second run would see another state than the first.
        """
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self._run_once(index, compiled, args, kwargs)
        if kwargs.get("past_key_values") is not None:
            raise NotRecomputable("its layers add to a cache of keys and values, twice if rerun")
        # works with vmap: the modules inside enter vmap in each run, the layer itself is outside
        with set_checkpoint_early_stop(False):
            return checkpoint(
                self._run_once, index, compiled, args, kwargs,
                use_reentrant=False, context_fn=_recompute_contexts,
            )  # fmt: skip

    def _run_once(self, index: int, compiled: bool, args: Any, kwargs: dict[str, Any]) -> Any:
        if not compiled:
            return self._shells[index](*args, **kwargs)
        # views: the compiler must not recognise the first layer's tensors as the template's own
        tensors = list(named_tensors_with_aliases(self.layers[index]))
        views = {id(t): t.view_as(t) for _, t in tensors}
        by_name = {name: views[id(t)] for name, t in tensors}
        return self._compiled[index](by_name, args, kwargs)

    def _pack_argument(self, t: Tensor, where: Layout) -> Tensor:
        """Pack an argument with a token axis, once per pass; return any other unchanged."""
        if t.ndim < 2 or t.shape[1] != where.longest or t.shape[0] not in (1, len(where.scatter)):
            return t
        if id(t) not in self._packed:
            rows = t.expand(len(where.scatter), *t.shape[1:])
            self._packed[id(t)] = (t, pack(rows, where))
        packed: Tensor = self._packed[id(t)][1]
        return packed


def _recompute_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of a layer's first and second run, with the same random draws in both."""
    where, draws = ActivePass.layout, ActivePass.random
    calls = 0 if draws is None else draws.calls

    @contextlib.contextmanager
    def replay() -> Iterator[None]:
        with (
            use_layout(where, draws),
            draws.replay_from(calls) if draws else contextlib.nullcontext(),
        ):
            yield

    return contextlib.nullcontext(), replay()


class _LayerForward:
    """Replacement for the forward of one layer, installed on the instance."""

    def __init__(self, stack: LayerStack, index: int) -> None:
        self.stack = stack
        self.index = index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.stack.run(self.index, args, kwargs)


class _Template:
    """Calls one layer with the tensors of another layer of the same kind."""

    def __init__(self, layer: nn.Module) -> None:
        self.shell = ClassForward(layer)

    def __call__(self, tensors: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        named = {f"inner.{n}": t for n, t in tensors.items()}
        return functional_call(self.shell, named, args, kwargs, tie_weights=False)


def _mark_dynamic(where: Layout, arguments: Any) -> None:
    """Mark the lengths that vary as dynamic, so that one compilation serves all of them.

    These are the length of a packed row and of the padded batch.
    """
    lengths = {where.gather.shape[1], where.longest}
    for t in pytree.tree_leaves((arguments, where)):
        if isinstance(t, Tensor) and t.ndim > 1 and t.shape[1] in lengths:
            torch._dynamo.maybe_mark_dynamic(t, 1)


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any], where: Layout) -> Tensor:
    states = args[0] if args else kwargs["hidden_states"]
    if states.shape[:2] != where.scatter.shape:
        raise NotPackable(
            f"the layers see {tuple(states.shape[:2])} tokens, the batch has "
            f"{tuple(where.scatter.shape)}"
        )
    hidden: Tensor = states
    return hidden


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
        raise NotPackable("the base has an encoder and a decoder")
    return max(stacks, key=lambda s: sum(p.numel() for x in s for p in x.parameters()))


def use_packed_attention(model: nn.Module) -> None:
    """Set the model's attention to ``packed_attention``: SDPA while no layout is active."""
    whole: Any = model
    whole.set_attn_implementation(ATTENTION_NAME)


def same_structure(a: nn.Module, b: nn.Module) -> bool:
    """Return whether one layer's code with the other's tensors computes the other layer."""
    ours, theirs = dict(a.named_modules()), dict(b.named_modules())
    return list(ours) == list(theirs) and all(
        type(x) is type(y)
        and _plain_attributes(x) == _plain_attributes(y)
        and _tensor_specs(x) == _tensor_specs(y)
        for x, y in zip(ours.values(), theirs.values(), strict=True)
    )


def _plain_attributes(module: nn.Module) -> dict[str, str]:
    """Return a module's attributes other than its tensors and submodules, as text."""
    skipped = {"_parameters", "_buffers", "_modules", "forward", *_LAYER_IDENTITY}
    return {
        k: _ADDRESS.sub("", repr(v))
        for k, v in module.__dict__.items()
        if k not in skipped
        and isinstance(v, (bool, int, float, str, dict, list, tuple, set, Tensor))
    }


def _tensor_specs(module: nn.Module) -> Sequence[Any]:
    """Return name, shape, dtype and ``requires_grad`` of a module's own tensors."""
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [(n, t.shape, t.dtype, t.requires_grad) for n, t in tensors]

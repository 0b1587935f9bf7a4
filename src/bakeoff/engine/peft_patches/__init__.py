"""Shims: how a PEFT layer that vmap trips over rides all the same. One small file a class.

A shim file gives ``PATCHES``: the dotted name of an attribute of a class in PEFT -> what stands
in for it. It takes the smallest piece that trips and computes exactly what PEFT computes: a
contract test holds each to PEFT's values and gradients. Found by name, so a PEFT that lacks the
class is served too; a subclass with an attribute of its own keeps it. The reason stands in the
file: which line of PEFT, and why ``torch.func.vmap`` cannot run it. Three attributes that PEFT has
not speak to the engine: ``on_install`` is called on a module once its shim is on, ``keyed`` marks a
layer that draws (``dropout``), ``sees_padding`` one that computes with padding (``feed``).

Called by ``assemble`` as soon as a method is attached, so that its start is taken from the layers
as they will be trained; ``lanes`` takes the model as it comes. A module that a shim is on has a
subclass of its own class (PyTorch's parametrizations do the same), which is why ``units`` need not
know of shims.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn


class Patched:
    """Marks the classes that ``install`` gives; ``stands_in_for`` is the module's own class."""

    original_class: ClassVar[type[nn.Module]]


def install_patches(model: nn.Module) -> list[nn.Module]:
    """Install the shims that a model's layers call for; return the modules they are on."""
    installed: list[nn.Module] = []
    # a shim may add modules
    for module in list(model.modules()):
        own = type(module)
        if issubclass(own, Patched):
            installed.append(module)
        elif stand_in := _patched_class(own):  # type: ignore[arg-type]  # mypy: a class is not Hashable
            module.__class__ = stand_in
            getattr(module, "on_install", _do_nothing)()
            installed.append(module)
    return installed


@functools.cache
def all_patches() -> Mapping[str, Any]:
    """Return what all shim files give."""
    files = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    return {name: value for file in files for name, value in file.PATCHES.items()}


@functools.cache
def _patched_class(own: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class that stands in for a module's, None where nothing needs to."""
    lineage = [f"{c.__module__}.{c.__qualname__}" for c in own.__mro__]
    body: dict[str, Any] = {}
    for dotted, value in all_patches().items():
        owner, _, name = dotted.rpartition(".")
        if owner in lineage:
            younger = own.__mro__[: lineage.index(owner)]
            if not any(name in vars(c) for c in younger):
                body[name] = value
    if not body:
        return None
    body |= {"stands_in_for": own, "__module__": own.__module__, "__qualname__": own.__qualname__}
    return type(own.__name__, (own, Patched), body)


def _do_nothing() -> None:
    pass

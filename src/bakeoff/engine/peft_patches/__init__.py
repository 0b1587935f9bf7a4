"""Patches that make PEFT layers work under vmap and CUDA graphs, one small file per class.

A patch file defines ``PATCHES``: dotted name of a class attribute in PEFT -> its replacement. It
replaces the smallest piece that fails and computes exactly what PEFT computes; a contract test
compares values and gradients. Classes are found by name, so a PEFT without the class is fine; a
subclass that overrides the attribute keeps its own. Each file says which line of PEFT it replaces
and why ``torch.func.vmap`` cannot run it.

Two attributes, which PEFT does not have, address the engine: ``on_install`` is called on a module
after it is patched, ``keyed`` marks a layer that draws noise (``lanes.dropout``). A layer that
averages over tokens does so over real ones (``packing.tokens``), as PEFT does on rows without
padding.

A patched module has a subclass of its own class, as in PyTorch's parametrizations.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn


class Patched:
    """Base of patched classes; ``original_class`` is the module's class before the patch."""

    original_class: ClassVar[type[nn.Module]]


def install_patches(model: nn.Module) -> list[nn.Module]:
    """Patch the layers of a model that need it; return the patched modules.

    Done as soon as a method is attached, so that a trial's start is taken from the patched layers.
    """
    installed: list[nn.Module] = []
    # a list: a patch may add modules
    for module in list(model.modules()):
        own = type(module)
        if issubclass(own, Patched):
            installed.append(module)
        elif patched := _patched_class(own):  # type: ignore[arg-type]  # mypy: a class is not Hashable
            module.__class__ = patched
            getattr(module, "on_install", _do_nothing)()
            installed.append(module)
    return installed


@functools.cache
def all_patches() -> Mapping[str, Any]:
    """Return the patches of all files."""
    files = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    return {name: value for file in files for name, value in file.PATCHES.items()}


@functools.cache
def _patched_class(own: type[nn.Module]) -> type[nn.Module] | None:
    """Return the patched version of a module's class, None if it needs none."""
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
    body |= {"original_class": own, "__module__": own.__module__, "__qualname__": own.__qualname__}
    return type(own.__name__, (own, Patched), body)


def _do_nothing() -> None:
    pass

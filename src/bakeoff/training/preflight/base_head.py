"""Find the head that a classifier gets on a base: the layers that are initialised at random."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel

from bakeoff.core import files
from bakeoff.core.errors import BakeoffError
from bakeoff.engine.safe_loading import from_pretrained_kwargs
from bakeoff.tasks import task_class
from bakeoff.tasks._base import POOLER, Task, is_in_head
from bakeoff.training.preflight.base_errors import load_error
from bakeoff.training.setup import quiet_transformers


def find_head(value: dict[str, Any]) -> dict[str, Any]:
    """Find the head of a task on a base; a worker's entry point.

    ``value`` has the ``task``, its ``options``, and ``path``, ``revision`` and ``trusted`` of the
    base. Returns ``head``, the option ``HEAD`` of the task, or None if the head is new and has
    the usual name; or an ``error`` to raise.
    """
    try:
        quiet_transformers()
        task = task_class(value["task"])(value["options"])
        return _find(task, value["path"], value["revision"], value["trusted"])
    except BakeoffError as error:
        return {"error": error.to_json()}
    except Exception as error:  # loaders raise many kinds for broken files
        if files.disk_full_message(error):
            raise
        return {"error": load_error(value["path"], error).to_json()}


def _find(task: Task, path: str, revision: str | None, trusted: bool) -> dict[str, Any]:
    kwargs = from_pretrained_kwargs(path, revision, trusted)
    config = AutoConfig.from_pretrained(path, **task.model_arguments(), **kwargs)
    # names are compared, not values: quantised weights need no package and no GPU here
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    model, info = getattr(transformers, task.auto_model).from_pretrained(
        path,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        device_map={"": "meta"},
        **kwargs,
    )
    return {"head": choose_head(model, set(info["missing_keys"]), type(task).heads)}


def choose_head(
    model: PreTrainedModel, missing: Collection[str], usual: Collection[str]
) -> dict[str, Any] | None:
    """Return the option ``HEAD`` of a classifier of which ``missing`` is not in the base's files.

    The head is what comes after the base and is missing. If nothing is, the files are those of a
    finished classifier: then the head is everything after the base. None if the head is new and of
    the ``usual`` names, which needs no option.
    """
    prefix = model.base_model_prefix
    after = [
        name
        for name, module in model.named_children()
        if name != prefix and any(True for _ in module.parameters())
    ]
    absent = [name for name in after if any(is_in_head(key, (name,)) for key in missing)]
    if not hasattr(model, prefix) and not absent:  # nothing tells the head from the base
        return None
    modules = absent or after
    if POOLER not in modules and any(is_in_head(key, (POOLER,)) for key in missing):
        modules = [POOLER, *modules]
    tensors = [name for name, _ in model.named_parameters() if is_in_head(name, modules)]
    replaced = any(name not in missing for name in tensors)
    if not modules or (not replaced and set(modules) <= set(usual)):
        return None
    return {"modules": modules, "replaced": replaced}

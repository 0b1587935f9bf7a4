"""Load what a hook saved onto an untouched base, as its user will: plain PEFT, plain transformers.

The way back from ``Hook.save``: for the probe of the catalog, the contract tests, and
``reloading``, which holds a study's own weights to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
from safetensors.torch import load_file

from bakeoff.engine import shims


def onto(base: Any, folder: Path, saved_as: str) -> Any:
    """Return the model that ``folder`` holds; ``base`` is used up, ``saved_as`` is the hook's.

    Raises:
        KeyError: a saved tensor that the base does not have.
    """
    if saved_as == "model":
        return type(base).from_pretrained(folder)
    if saved_as == "adapter":
        model = peft.PeftModel.from_pretrained(base, folder)
        shims.install(model)  # answers PEFT's question for each row's task, computes nothing else
        return model
    unknown = base.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if unknown.unexpected_keys:
        raise KeyError(f"{unknown.unexpected_keys[0]} is no tensor of the base")
    return base

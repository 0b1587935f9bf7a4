"""Load what a hook saved onto an untouched base, as its user will: plain PEFT, plain transformers.

The way back from ``Hook.save``: for the probe of the catalog, the contract tests, and
``reloading``, which holds a study's own weights to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
from safetensors.torch import load_file

from bakeoff.core.safe_read import CONFIG_BYTES, read_json
from bakeoff.engine import peft_patches, safe_loading
from bakeoff.methods import forbidden_arguments, user_defined

WEIGHTS = "adapter_model.safetensors"


def load_onto(base: Any, folder: Path, saved_as: str, trusted: bool = False) -> Any:
    """Return the model that ``folder`` holds; ``base`` is used up, ``saved_as`` is the hook's.

    A study folder may come from a stranger: weights are safetensors, and a config that leads to
    code, files or a hub is not followed. ``trusted``: the study consents to its base's own code.

    Raises:
        KeyError: a saved tensor that the base does not have.
        UsageError: ``unsafe-config-key``.
        PreflightError: what ``loading.check`` refuses.
        FileNotFoundError: there are no weights in safetensors.
    """
    if saved_as == "model":
        safe_loading.check_base_files(str(folder), None, trusted)
        return type(base).from_pretrained(folder, use_safetensors=True)
    if saved_as == "adapter":
        _check_adapter_files(folder)
        model = peft.PeftModel.from_pretrained(base, folder)
        peft_patches.install_patches(
            model
        )  # answers PEFT's question for each row's task, computes nothing else
        return model
    unknown = base.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if unknown.unexpected_keys:
        raise KeyError(f"{unknown.unexpected_keys[0]} is no tensor of the base")
    return base


def _check_adapter_files(folder: Path) -> None:
    """Look at an adapter's files before PEFT does: without safetensors it would unpickle."""
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"there is no {WEIGHTS} in {folder}")
    written = read_json(folder / "adapter_config.json", CONFIG_BYTES)
    ours = user_defined.BOOKKEEPING_KEYS - {
        "auto_mapping"
    }  # PEFT writes these, and reads none of them here
    forbidden_arguments.check_arguments(
        folder.parent.name, {k: v for k, v in written.items() if k not in ours}
    )

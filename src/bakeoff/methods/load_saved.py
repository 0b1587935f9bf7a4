"""Load what ``Hook.save`` wrote onto a base, with plain PEFT and transformers as a user would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
from safetensors.torch import load_file

from bakeoff.core.safe_read import CONFIG_BYTES, read_json
from bakeoff.engine import peft_patches, safe_loading
from bakeoff.methods import forbidden_arguments, user_defined
from bakeoff.methods.boft_extension import disable_boft_extension

WEIGHTS = "adapter_model.safetensors"


def load_onto(base: Any, folder: Path, saved_as: str, trusted: bool = False) -> Any:
    """Return the model in ``folder``; ``base`` is modified, ``saved_as`` is the hook's.

    The folder is untrusted: only safetensors are read, and a config that loads code, files or
    models is refused. ``trusted``: the study trusts the base's own code.

    Raises:
        KeyError: the base lacks a saved tensor.
        UsageError: ``unsafe-config-key``.
        PreflightError: see ``safe_loading.check_base_files``.
        FileNotFoundError: there are no safetensors weights.
    """
    if saved_as == "model":
        safe_loading.check_base_files(str(folder), None, trusted)
        return type(base).from_pretrained(folder, use_safetensors=True)
    if saved_as == "adapter":
        _check_adapter_files(folder)
        with disable_boft_extension():
            model = peft.PeftModel.from_pretrained(base, folder)
        # some PEFT methods ask for each row's task; the patch only provides it
        peft_patches.install_patches(model)
        return model
    unknown = base.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if unknown.unexpected_keys:
        raise KeyError(f"{unknown.unexpected_keys[0]} is no tensor of the base")
    return base


def _check_adapter_files(folder: Path) -> None:
    """Check an adapter's files before PEFT reads them: without safetensors it would unpickle."""
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"there is no {WEIGHTS} in {folder}")
    written = read_json(folder / "adapter_config.json", CONFIG_BYTES)
    # PEFT writes these keys, but does not read them here; "auto_mapping" it does
    ignored = user_defined.BOOKKEEPING_KEYS - {"auto_mapping"}
    forbidden_arguments.check_arguments(
        folder.parent.name, {k: v for k, v in written.items() if k not in ignored}
    )

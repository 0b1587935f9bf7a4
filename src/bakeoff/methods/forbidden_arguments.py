"""Arguments of PEFT's config classes that a study must not set: they load code, files or models.

``adapter_config.json`` and study files are untrusted input. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bakeoff.core.errors import UsageError

_UNSAFE = {
    "auto_mapping": "names a module that PEFT imports",
    "megatron_core": "names a module that PEFT imports",
    "megatron_config": "is the configuration of a module that PEFT imports",
    "tokenizer_kwargs": "goes to the loader of a tokenizer, `trust_remote_code` included",
    "tokenizer_name_or_path": "names a tokenizer that is loaded from a hub or a folder",
    "cache_file": "names a file that PEFT unpickles",
    "covariance_file": "names a file that PEFT unpickles",
    "prompt_tuning_init_state_dict_path": "names a file that PEFT unpickles",
    "adapters": "names adapters that PEFT loads from a hub or a folder",
    "base_model_name_or_path": "names a base; the study's is under [base]",
    "revision": "names a base's revision; the study's is under [base]",
    "shadow_model": "names a model that is loaded from a hub or a folder",
}
_HARMLESS_VALUES = {"shadow_model": "mirror", "megatron_core": "megatron.core"}
"""Values that are allowed: PEFT's defaults, which load nothing by themselves."""


def check_arguments(name: str, config: Mapping[str, Any]) -> None:
    """Refuse the config of the method ``name`` if an argument loads code, files or models.

    Raises:
        UsageError: ``unsafe-config-key``.
    """
    for where, key in _unsafe_arguments(config):
        raise UsageError(
            "unsafe-config-key",
            f"The config of '{name}' sets `{where}`, which {_UNSAFE[key]}: bakeoff loads only "
            "the study's own base and data.",
            f"remove `{where}`.",
        )


def _unsafe_arguments(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield unsafe arguments as (dotted path, name), including nested configs and lists."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in _UNSAFE and inner is not None and inner != _HARMLESS_VALUES.get(key):
                yield prefix + key, key
            else:
                yield from _unsafe_arguments(inner, f"{prefix}{key}.")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _unsafe_arguments(inner, prefix)

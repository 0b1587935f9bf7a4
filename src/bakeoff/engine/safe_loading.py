"""Load a base safely: weights as safetensors, files as data, nothing as code.

``check_base_files`` checks a base's own files before transformers reads them, because some of their
settings make it import modules, download kernels or unpickle weights.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bakeoff.core.errors import PreflightError
from bakeoff.core.safe_read import CONFIG_BYTES, INDEX, SHARD_NAME, UnreadableFile, read_json

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
ADAPTER = "adapter_config.json"
SAFE = (".safetensors", ".safetensors.index.json")
_KERNEL_KEY = re.compile(
    r"_?(attn|experts|kernels?)_(implementation|config)(_internal)?|use_kernels"
)
_PLAIN = re.compile(r"[a-z0-9_]+")
"""Name of an implementation inside transformers; one from a hub contains a slash."""


def from_pretrained_kwargs(
    path: str, revision: str | None, trusted: bool = False
) -> dict[str, Any]:
    """Check a base's files; return the arguments that every ``from_pretrained`` gets.

    A local folder never contacts a hub. ``trusted``: the study allows this base's own code.

    Raises:
        PreflightError: see ``check_base_files``.
    """
    check_base_files(path, revision, trusted)
    code: dict[str, Any] = {"trust_remote_code": trusted}
    if Path(path).is_dir():
        return {"local_files_only": True, **code}
    if trusted:  # code of the same commit as the weights
        code["code_revision"] = revision
    return {"revision": revision, **code}


def check_base_files(path: str, revision: str | None, trusted: bool = False) -> None:
    """Refuse a base whose files would run code; ``trusted`` allows the base's own code.

    Raises:
        PreflightError: ``base-is-adapter``, ``base-wants-code``, ``base-wants-kernel``,
            ``pickled-weights``, ``base-config-broken``.
    """
    if Path(path).is_dir():
        _check_files(path, revision, trusted)
    else:
        _check_hub_files_once(path, revision, trusted)


def _check_files(path: str, revision: str | None, trusted: bool) -> None:
    """Do the work of ``check_base_files``, without its cache."""
    if _find_base_file(path, revision, ADAPTER) is not None:
        raise PreflightError(
            "base-is-adapter",
            f"The base {path} contains an {ADAPTER}: another base with that adapter would be "
            "loaded instead.",
            "the base that the adapter was trained on, or the merged model; if these weights are "
            f"merged already, remove {ADAPTER}.",
        )
    config = _read_base_json(path, revision, CONFIG)
    for settings in (config, _read_base_json(path, revision, TOKENIZER)):
        for key, value in _walk_entries(settings):
            if key == "auto_map" and value:
                _check_code(path, config, value, trusted)
            elif (
                not trusted
                and _KERNEL_KEY.fullmatch(key)
                and not _is_builtin_implementation(key, value)
            ):
                raise PreflightError(
                    "base-wants-kernel",
                    f"The base {path} has `{key} = {str(value)[:80]}`: code would be downloaded "
                    "from a hub and run.",
                    f"remove `{key}` from {CONFIG}: bakeoff chooses the implementation.",
                )
    named = config.get("transformers_weights")
    shards = (_read_base_json(path, revision, INDEX).get("weight_map") or {}).values()
    wrong = [s for s in shards if not isinstance(s, str) or not SHARD_NAME.fullmatch(s)]
    if named is not None and not str(named).endswith(SAFE):
        wrong.append(named)
    if wrong:
        raise PreflightError(
            "pickled-weights",
            f"The base {path} names '{str(wrong[0])[:80]}' as a weight file, which is not a plain "
            "name of a *.safetensors file.",
            "`model.save_pretrained(folder)` in transformers 5 writes safetensors.",
        )


_check_hub_files_once = functools.cache(_check_files)
"""A base from a hub is checked once per process: each check contacts the hub."""


def _check_code(path: str, config: Mapping[str, Any], auto_map: Any, trusted: bool) -> None:
    """Refuse code of the base that the study does not allow, or that no commit pins."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if trusted:
        # "other/repo--module.Class": the pinned commit does not cover that repository
        if "--" in str(auto_map):
            raise PreflightError(
                "base-wants-code",
                f"The base {path} uses code from another repository ({str(auto_map)[:99]}), "
                "which `revision` does not pin.",
                "a copy of the base that includes that code.",
            )
        return
    if (
        config.get("model_type") not in CONFIG_MAPPING_NAMES
    ):  # otherwise transformers' own code is used
        raise PreflightError(
            "base-wants-code",
            f"The base {path} needs its own code (`auto_map`): transformers has no model type "
            f"'{str(config.get('model_type'))[:40]}'.",
            "read that code; then set `trust_remote_code = true` under [base], and `revision` to "
            "the 40 digits of the commit that you read.",
        )


def _walk_entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, in sub-configs too; reading has bounded the depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            if key != "auto_map":
                yield from _walk_entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk_entries(inner)


def _is_builtin_implementation(key: str, value: Any) -> bool:
    """Return whether an implementation is part of transformers."""
    if not value or key.endswith("_internal"):
        return not value
    values = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(v, str) and _PLAIN.fullmatch(v) for v in values if v is not None)


def _read_base_json(path: str, revision: str | None, name: str) -> dict[str, Any]:
    """Read one of a base's JSON files; a missing one is empty."""
    file = _find_base_file(path, revision, name)
    if file is None:
        return {}
    try:
        value = read_json(file, CONFIG_BYTES if name != INDEX else 16 * CONFIG_BYTES)
    except UnreadableFile as error:
        raise _broken_config(path, name, str(error)) from error
    if not isinstance(value, dict):
        raise _broken_config(path, name, "it is not a JSON object")
    return value


def _broken_config(path: str, name: str, why: str) -> PreflightError:
    return PreflightError(
        "base-config-broken", f"{name} of the base {path}: {why}.", "download it again."
    )


def _find_base_file(path: str, revision: str | None, name: str) -> Path | None:
    """Return the local path of one of a base's files, downloaded if it is on a hub."""
    folder = Path(path)
    if folder.is_dir():
        return folder / name if (folder / name).exists() else None
    from transformers.utils import cached_file

    try:
        cached = cached_file(
            path, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError:  # no such base, or no network: loading it will report that
        return None
    return None if cached is None else Path(cached)

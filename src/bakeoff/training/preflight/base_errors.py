"""Errors of a base that transformers cannot load, with a hint that fits the cause.

transformers raises one kind of error for many causes, and some of its advice does not help: for a
SentencePiece file it asks for `tiktoken`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from bakeoff.core.errors import PreflightError

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
TOKENIZER = "tokenizer.json"
_NEEDED = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""Packages that transformers reads SentencePiece files with, and their modules."""
_PROTOBUF_FIELD = b"\n"
"""First byte of a SentencePiece file; a `tokenizer.model` for tiktoken is text."""
_WRONG_KIND = re.compile(
    r"Unrecognized configuration class .*?\.(\w+)'> "
    r"for this kind of AutoModel: (?:AutoModelFor)?(\w+)"
)
_UNKNOWN_TYPE = re.compile(r"model type `(.{1,60}?)` but Transformers does not recognize")
_NO_TOKENIZER = "backend tokenizer"


def load_error(path: str, error: Exception) -> PreflightError:
    """Return the error for a base that cannot be loaded: its cause, and a hint that helps."""
    text = str(error)
    if _mentions_tokenizer(text) and (missing := _tokenizer_packages(path, text)):
        return _missing_packages(missing)
    if _NO_TOKENIZER in text:
        return PreflightError(
            "base-not-loadable",
            f"The base cannot be loaded: it has no tokenizer that can be read ({TOKENIZER}).",
            f"copy {TOKENIZER} and tokenizer_config.json of the model that it was trained from "
            "into its folder.",
        )
    if (wrong := _WRONG_KIND.search(text)) is not None:
        return PreflightError(
            "base-not-loadable",
            f"The base cannot be loaded: transformers has no {wrong[2]} for its kind of model "
            f"({wrong[1].removesuffix('Config')}).",
            'a decoder such as Llama, Qwen or GPT-2 for `kind = "sft"` or "choice"; an encoder or '
            'decoder for "classify".',
        )
    if (unknown := _UNKNOWN_TYPE.search(text)) is not None:
        return PreflightError(
            "base-not-loadable",
            f"The base cannot be loaded: this version of transformers has no model type "
            f"'{unknown[1]}'.",
            "`pip install --upgrade transformers`, or check `model_type` in its config.json.",
        )
    if "ignore_mismatched_sizes" in text:
        return PreflightError(
            "base-not-loadable",
            "The base cannot be loaded: its weights have other shapes than its config.json says.",
            "download it again, completely: its files belong to different models.",
        )
    if isinstance(error, json.JSONDecodeError):
        return PreflightError(
            "base-not-loadable",
            f"The base cannot be loaded: one of its JSON files is damaged ({error}).",
            "download its config and tokenizer files again.",
        )
    hint = "load it with plain transformers first; `bakeoff doctor` shows versions."
    if not Path(path).is_dir():
        hint = (
            "check its id and `revision` under [base]; `hf auth login`, if it is private or gated; "
            f"without a network, `hf download {path}` beforehand."
        )
    cause = f"The base cannot be loaded: {type(error).__name__}: {error}"
    return PreflightError("base-not-loadable", cause, hint)


def _mentions_tokenizer(text: str) -> bool:
    return any(word in text.lower() for word in ("tiktoken", "sentencepiece", "protobuf"))


def _tokenizer_packages(path: str, text: str) -> list[str]:
    """Return the packages that reading the base's tokenizer needs and that are not installed."""
    folder = Path(path)
    found = [folder / name for name in SENTENCEPIECE_FILES if (folder / name).is_file()]
    if folder.is_dir() and not found:
        # without any file transformers names the packages too, and none of them would help
        return [] if _NO_TOKENIZER in text or _is_installed("tiktoken") else ["tiktoken"]
    if found and not _is_sentencepiece(found[0]):
        return [] if _is_installed("tiktoken") else ["tiktoken"]
    return [package for package, module in _NEEDED.items() if not _is_installed(module)]


def _is_sentencepiece(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(1) == _PROTOBUF_FIELD


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def _missing_packages(missing: list[str]) -> PreflightError:
    kind = "tiktoken" if missing == ["tiktoken"] else "SentencePiece"
    names = " ".join(missing)
    extra = "" if kind == "tiktoken" else '; `pip install "bakeoff[sentencepiece]"` has them'
    return PreflightError(
        "base-not-loadable",
        f"The base cannot be loaded: its tokenizer is a {kind} file, and reading it needs "
        f"{' and '.join(missing)}, not installed here.",
        f"`pip install {names}`{extra}.",
    )

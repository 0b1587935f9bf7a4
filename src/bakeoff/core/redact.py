"""What may leave the process as text: no secrets, no characters that act instead of being read.

Stands at the bottom, beside the sinks it serves: the log, the terminal, the report. Data sets,
answers of models, error messages of libraries and names in files are written by strangers; what
they write is shown, and does nothing. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "[redacted]"
# C0 and C1 controls (terminal escapes among them) but newline and tab, the bidirectional
# overrides that make text read backwards, and lone surrogates, which UTF-8 cannot hold.
_CONTROL_CHARS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SECRET_NAME = re.compile(
    r"(?!TOKENIZERS_)(?!.*_(PATH|FILE|DIR|SOCK|URL|HOME)$)"
    r".*(TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIAL|PRIVATE_?KEY)",
    re.IGNORECASE,
)
_MIN_SECRET_LENGTH = 8
"""Characters of an environment variable's value that is taken for a secret."""
_KEY_NAMES = (
    r"(?:pass(?:word|wd)|api[_-]?key|private[_-]?key|client[_-]?secret|"
    r"secret[_-]?(?:access[_-]?)?key|(?:access|auth|hf)[_-]?token)"
)
# every repetition has an end: what is searched may be long, and made to be slow
_SECRETS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,20}KEY-----|$)",
        r"(?P<kept>\b(?:Bearer|Basic)\s{1,4})[A-Za-z0-9+/._~=-]{8,}",
        # https://user:secret@host, https://token@host
        r"(?P<kept>\b[a-z][a-z0-9+.-]{0,15}://)[^\s/\"'<>]{1,500}(?=@)",
        r"\bhf_[A-Za-z0-9]{10,}",
        r"\bapi_org_[A-Za-z0-9]{10,}",
        r"\bsk-[A-Za-z0-9_-]{16,}",
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
        r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[A-Za-z0-9_-]{10,}",
        r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",  # a JSON web token
        r"(?P<kept>[?&](?:x-amz-(?:signature|security-token|credential)|sig|signature|token|key)=)"
        r"[^\s&\"'<>]{6,}",
        r"(?P<kept>--(?:[a-z]{1,12}-){0,2}(?:token|password|key|secret)[ =])[^\s]{6,}",
        # password = x, "api_key": "x", AWS_SECRET_ACCESS_KEY=x
        rf"(?P<kept>(?<![a-z]){_KEY_NAMES}[\"']?\s{{0,4}}[=:]\s{{0,4}}[\"']?)[^\s\"',;&\[]{{6,}}",
    )
)


def strip_control_chars(text: str) -> str:
    """Return the text with a sign in place of each character that acts on a terminal or a page."""
    return _CONTROL_CHARS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def escape_control_chars(text: str) -> str:
    """Return JSON with those characters written as escapes: the same value, safe to look at."""
    return _CONTROL_CHARS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def redact(text: str) -> str:
    """Return the text without secrets: tokens and keys by their form, and those this process has.

    The latter are the values of environment variables whose names say so (``HF_TOKEN``).
    """
    return _redact(text, _process_secrets(os.environ))


def redact_value(value: Any) -> Any:
    """Return a JSON value with every text in it redacted, keys included."""
    return _redact_value(value, _process_secrets(os.environ))


def sanitize(text: str) -> str:
    """Return what a person may read on a terminal."""
    return strip_control_chars(redact(text))


def _process_secrets(environment: Mapping[str, str]) -> list[str]:
    """Return the secrets of this process, the longest first, so that none hides in another."""
    found = {
        v for k, v in environment.items() if len(v) >= _MIN_SECRET_LENGTH and _SECRET_NAME.match(k)
    }
    return sorted((v for v in found if not v.isdigit()), key=len, reverse=True)


def _redact(text: str, own: Sequence[str]) -> str:
    for value in own:
        text = text.replace(value, REDACTED)
    for pattern in _SECRETS:
        text = pattern.sub(_replacement, text)
    return text


def _redact_value(value: Any, own: Sequence[str]) -> Any:
    if isinstance(value, str):
        return _redact(value, own)
    if isinstance(value, dict):
        return {_redact(k, own) if isinstance(k, str) else k: _redact_value(v, own)
                for k, v in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [_redact_value(v, own) for v in value]
    if isinstance(value, tuple):
        return tuple(_redact_value(v, own) for v in value)
    return value


def _replacement(found: re.Match[str]) -> str:
    return (found.groupdict().get("kept") or "") + REDACTED
